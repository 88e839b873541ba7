"""One box's place on the host's disk: its own folders, copied in from a prepared root and out to a snapshot.

Its secret: the layout. `files/` holds the box's own folders as a tree in the form of `BoxSpec.root`, below a folder
that only the box's user can enter. Each mount is a folder and never a link: with a link, the author of the root would
choose a place of the host for the box to own. Blocking; call from a worker thread.
"""

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath

from orchestrator.service.sandbox.provider import HOME, BoxSpec, BoxStartFailed
from orchestrator.service.sandbox.safe_fs import Copier, clone, remove

ARTIFACTS, TESTS, VERIFIER = "/logs/artifacts", "/tests", "/logs/verifier"
OWN = (HOME, "/tmp", "/app", TESTS, "/solution", "/logs")  # noqa: S108
#: Folders that every Harbor task finds, writable for all users.
LOGS = ("/logs/agent", ARTIFACTS, VERIFIER)
#: Folders of the machine: read-only in every box, so no folder of a prepared root can replace them.
SYSTEM = frozenset(
    {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxFolder:
    """The folder `base` of one box, maybe a disk of its own.

    `owner` is the host's user that the box runs as, None for our own.
    """

    base: Path
    owner: int | None = None

    @property
    def files(self) -> Path:
        return self.base / "files"

    def create(self, spec: BoxSpec) -> None:
        """Make the box's own folders and copy its prepared root in. Raises BoxStartFailed."""
        refuse_system(spec)
        try:
            self.base.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.base.chmod(0o700)
            self.files.mkdir()
            self.files.chmod(0o755)
            for path in (*OWN, *LOGS, spec.working_directory, *spec.scratch):
                self._make(path)
            for path in LOGS:
                (self.files / path[1:]).chmod(0o777)
            (self.files / "tmp").chmod(0o1777)
            if spec.root is not None:
                Copier(owner=self.owner).copy(spec.root, self.files)
            for path, source in spec.scratch.items():
                if source is not None:
                    Copier(owner=self.owner).copy(source, self.files / path[1:])
            if self.owner is not None:
                os.chown(self.base, self.owner, self.owner)
        except OSError as error:
            raise BoxStartFailed(f"devbox {spec.id}: its folders could not be made: {error}") from error

    def export(self, target: Path, spec: BoxSpec, only: str = "") -> None:
        """Copy the box's own folders, or only the path `only` of them, into the empty `target`. Raises OSError."""
        binds = frozenset(bind.target.strip("/") for bind in spec.binds)
        Copier(skip=binds, only=only.strip("/")).copy(self.files, target)

    def hand_over(self, target: Path) -> None:
        """Move the files to a place that is not there yet, in another file system too. Raises OSError."""
        try:
            self.files.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            clone(self.files, target)

    def remove(self) -> None:
        remove(self.base)

    def is_whole(self) -> bool:
        """Tell whether its own folders exist: inside a sandbox they are mounts and cannot be removed."""
        return all((self.files / path.strip("/")).is_dir() for path in OWN)

    def tops(self) -> list[str]:
        """The folders that must appear in the box's root: paths such as "app" and "home/user"."""
        folders = [place for place in self.files.iterdir() if place.name != "home"]
        return sorted(str(place.relative_to(self.files)) for place in (*folders, *(self.files / "home").iterdir()))

    def anchors(self, targets: Iterable[str]) -> list[str]:
        """The box's own folders above mounts in them, made if they are missing; the upper ones first.

        Mounted onto themselves they cannot be renamed; else the box would move them away, mount and all, and put a
        program of its own in the place of one that it may not change. Raises BoxStartFailed for a link in the way.
        """
        found: set[str] = set()
        for place in (target.strip("/") for target in targets):
            for top in self.tops():
                if not place.startswith(f"{top}/"):
                    continue
                _, *paths = accumulate(place.removeprefix(f"{top}/").split("/"), "{}/{}".format, initial=top)
                for path in paths:
                    if (self.files / path).is_symlink():
                        raise BoxStartFailed(
                            f"/{path} is a link in the prepared root, and /{place} has to be mounted there"
                        )
                found.update(paths[:-1])
        for path in sorted(found):
            self._make(f"/{path}")
        return sorted(found)

    def _make(self, path: str) -> None:
        folder = self.files
        for part in PurePosixPath(path).parts[1:]:
            folder /= part
            if not folder.is_dir():
                folder.mkdir()
                folder.chmod(0o755)
                if self.owner is not None:
                    os.chown(folder, self.owner, self.owner)


def refuse_system(spec: BoxSpec) -> None:
    """Raise BoxStartFailed for a spec that claims a folder of the machine, naming it."""
    folders = [spec.working_directory]
    if spec.root is not None:
        try:
            found = sorted(spec.root.iterdir())
        except OSError as error:
            raise BoxStartFailed(f"devbox {spec.id}: its prepared root cannot be read: {error}") from error
        folders += [f"/{entry.name}" for entry in found]
        # Each of these becomes a mount: see `BoxFolder.tops`.
        home = spec.root / "home"
        found += sorted(home.iterdir()) if home.is_dir() and not home.is_symlink() else []
        odd = [str(each.relative_to(spec.root)) for each in found if each.is_symlink() or not each.is_dir()]
        if odd:
            raise BoxStartFailed(f"devbox {spec.id}: its prepared root may hold folders only, not {', '.join(odd)}")
    for path in folders:
        if path == "/":
            continue
        parts = PurePosixPath(path).parts
        if parts[:1] != ("/",) or ".." in parts or "\0" in path:
            raise BoxStartFailed(f"devbox {spec.id}: {path!r} is not an absolute path without '..' and NUL")
        if parts[1] in SYSTEM:
            raise BoxStartFailed(
                f"devbox {spec.id}: {path} belongs to the system, which is read-only in a devbox; "
                f"use a folder of its own such as {HOME}, /app or /srv"
            )
