"""User namespaces with many ids: for boxes of images, and for our own programs that handle such files.

Its secret: who may map what (user_namespaces(7)). Root writes any map itself. An ordinary user gets the ids that
/etc/subuid and /etc/subgid lend him, by the programs newuidmap and newgidmap; the namespace's root is then the first of
these and not the user himself, so that nothing in it is he. Without such ids one is left, his own.

A namespace is made by a small process, because the service has threads, and a process with threads cannot enter one. It
is held by an open file and reused. No further namespace can be made in it.
"""

import asyncio
import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import anyio
from anyio.to_thread import run_sync

from orchestrator.service.sandbox.provider import BoxStartFailed

#: Ids that an image may use; one above is not to be had in any.
ID_COUNT: Final = 65_536
_LIMIT_S: Final = 30.0
_MAKER: Final = Path(__file__).with_name("namespace_maker.py")
_HELPERS: Final = ("newuidmap", "newgidmap")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    """Ids 0 to `count` - 1 of a namespace are the host's users from `user` and groups from `group` on."""

    user: int
    group: int
    count: int = ID_COUNT

    @classmethod
    def own(cls) -> Self:
        """Return the map that this process's user can have: all ids of images if possible, else the one id."""
        if os.geteuid() == 0:
            return cls(user=0, group=0)
        name = pwd.getpwuid(os.geteuid()).pw_name
        users = lent_ids(Path("/etc/subuid"), name, os.geteuid())
        groups = lent_ids(Path("/etc/subgid"), name, os.geteuid())
        if users is None or groups is None or any(shutil.which(helper) is None for helper in _HELPERS):
            return cls(user=os.geteuid(), group=os.getegid(), count=1)
        return cls(user=users, group=groups)

    @property
    def is_whole(self) -> bool:
        """True if images find all their users."""
        return self.count == ID_COUNT


def lent_ids(file: Path, name: str, user: int) -> int | None:
    """Return the first of ID_COUNT ids that subuid(5) or subgid(5) lends a user; None if there are not so many."""
    try:
        rows = [line.split(":") for line in file.read_text().splitlines()]
    except OSError:
        return None
    found = [row for row in rows if len(row) == 3 and row[0] in {name, str(user)} and row[1].isdigit()]
    return next((int(start) for _, start, count in found if count.isdigit() and int(count) >= ID_COUNT), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserNamespace:
    """A user namespace; `fd` holds it. Programs enter it by setns(2)."""

    ids: IdMap
    fd: int

    @classmethod
    async def make(cls, ids: IdMap) -> Self:
        """Make a namespace with these ids. Raises BoxStartFailed, with what the machine said."""
        owner = (str(ids.user), str(ids.group)) if os.geteuid() == 0 else ()
        maker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", os.fspath(_MAKER), *owner),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert maker.stdin is not None
        assert maker.stdout is not None
        assert maker.stderr is not None
        try:
            with anyio.fail_after(_LIMIT_S):
                if await maker.stdout.readline() == b"made\n":
                    await _map(maker.pid, ids)
                    maker.stdin.write(b"mapped\n")
                    if await maker.stdout.readline() == b"ready\n":
                        return cls(ids=ids, fd=os.open(f"/proc/{maker.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC))
                words = (await maker.stderr.read()).decode(errors="replace").strip()
        except (OSError, subprocess.CalledProcessError) as error:
            words = str(error) or "it takes too long"
        finally:
            with anyio.CancelScope(shield=True):
                maker.stdin.close()
                await maker.wait()
        raise BoxStartFailed(f"this machine gives no user namespace: {words}")

    def close(self) -> None:
        os.close(self.fd)


async def _map(pid: int, ids: IdMap) -> None:
    """Raises OSError and CalledProcessError."""
    for kind, start, own in (("uid", ids.user, os.geteuid()), ("gid", ids.group, os.getegid())):
        if os.geteuid() == 0 or (ids.count == 1 and start == own):
            await run_sync(_write_map, Path(f"/proc/{pid}"), kind, f"0 {start} {ids.count}\n")
        else:
            await anyio.run_process([f"new{kind}map", str(pid), "0", str(start), str(ids.count)])


def _write_map(process: Path, kind: str, text: str) -> None:
    if kind == "gid" and os.geteuid() != 0:  # else a user could leave groups that keep him out
        (process / "setgroups").write_text("deny")
    (process / f"{kind}_map").write_text(text)
