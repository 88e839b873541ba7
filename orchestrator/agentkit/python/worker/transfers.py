"""Files and folders between this machine and a devbox, for an agent's workspace and for `sweep workspace`."""
# ruff: noqa: PTH100, PTH103, PTH112, PTH117, PTH118, PTH119, PTH120, PTH123  # pathlib is slow to import

from __future__ import annotations

import os
from shlex import quote

from . import standard_library

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike
    from typing import Any

    Local = str | PathLike[str]


class WorkspaceError(RuntimeError):
    """The devbox refused a request; the message says why."""


class CommandResult:
    """The end of a command in the devbox; `exit_status` is 128 + n after signal n, None when it ran out of time."""

    def __init__(self, exit_status: int | None, stdout: str, stderr: str) -> None:
        self.exit_status = exit_status
        self.stdout = stdout
        self.stderr = stderr

    def __repr__(self) -> str:
        return f"ExecResult(exit_status={self.exit_status!r}, stdout={self.stdout!r}, stderr={self.stderr!r})"


class Transfers:
    """Upload and download between this machine and a devbox, on top of `exec`, `read`, `write` and `scratch`.

    A folder travels as one tar archive. A downloaded archive was made in the devbox and is not trusted: members and
    links that would lie outside of the folder it is unpacked to are left out.
    """

    scratch: str

    if TYPE_CHECKING:

        def exec(self, command: str, *, timeout: float = 600.0) -> Any: ...
        def read(self, path: str) -> bytes: ...
        def write(self, path: str, data: bytes) -> None: ...

    def upload(self, local: Local, path: str) -> None:
        """Copy a file or a folder of this machine to `path` in the devbox; below it, if it ends with a slash."""
        local, path = os.path.abspath(local), os.fspath(path)
        if path.endswith("/"):
            path += os.path.basename(local)
        if not os.path.isdir(local):
            with open(local, "rb") as file:
                self.write(path, file.read())
            if os.access(local, os.X_OK):
                self._must(f"chmod +x -- {quote(path)}", path)
            return

        with standard_library():
            import io
            import tarfile  # slow to import, and most agents do without

        archive, name = io.BytesIO(), self._archive_path()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(local, arcname=".")
        self.write(name, archive.getvalue())
        unpack = f"mkdir -p -- {quote(path)} && tar -xf {quote(name)} --no-same-owner -C {quote(path)}"
        self._must(f"{unpack}; status=$?; rm -f {quote(name)}; exit $status", path)

    def download(self, path: str, local: Local) -> None:
        """Copy a file or a folder of the devbox to `local` on this machine; a file into it, if it is a folder."""
        path, local = os.fspath(path), os.path.abspath(local)
        if self.exec(f"test -d {quote(path)}").exit_status != 0:
            if os.path.isdir(local):
                local = os.path.join(local, os.path.basename(path))
            data = self.read(path)
            os.makedirs(os.path.dirname(local), exist_ok=True)
            with open(local, "wb") as file:
                file.write(data)
            return

        with standard_library():
            import io
            import tarfile

        name = self._archive_path()
        self._must(f"mkdir -p {quote(self.scratch)} && tar -cf {quote(name)} -C {quote(path)} .", path)
        try:
            archive = io.BytesIO(self.read(name))
        finally:
            self.exec(f"rm -f {quote(name)}")

        def inside_only(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
            """The member if it stays in its folder, else None."""
            try:
                return tarfile.data_filter(member, folder)
            except tarfile.FilterError:
                return None

        os.makedirs(local, exist_ok=True)
        with tarfile.open(fileobj=archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(local, filter=inside_only)  # noqa: S202
            else:  # no other kind of member is safe in a Python without such filters
                plain = [member for member in tar if member.isfile() or member.isdir()]
                inside = [each for each in plain if not os.path.isabs(each.name) and ".." not in each.name.split("/")]
                tar.extractall(local, inside)  # noqa: S202

    def _archive_path(self) -> str:
        return f"{self.scratch}/transfer-{os.urandom(6).hex()}.tar"

    def _must(self, command: str, path: str) -> None:
        done = self.exec(command)
        if done.exit_status != 0:
            raise WorkspaceError(f"{path}: {(done.stderr or done.stdout).strip() or 'cannot be copied'}")
