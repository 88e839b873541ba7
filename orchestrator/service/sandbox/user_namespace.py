"""User namespaces with many ids: for boxes of images, and for our own programs that handle such files.

Its secret: who may map what (user_namespaces(7)). Root writes any map of ids that it has. That may be all of the
machine's, or those that were lent to an ordinary user (`own_ids`): the namespace's root is then the first of these and
not the user himself, so that nothing in it is he. Without such ids one is left, his own.

A namespace is made by a small process, because the service has threads, and a process with threads cannot enter one. It
is held by an open file and reused. No further namespace can be made in it.
"""

import asyncio
import os
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


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    """Ids 0 to `count` - 1 of a namespace are this process's users from `user` and groups from `group` on.

    `outside` is what the machine calls that user.
    """

    user: int
    group: int
    count: int = ID_COUNT
    outside: int = 0

    @classmethod
    def own(cls) -> Self:
        """Return the ids that files of images have here: all ids of images if this process has them, else its own."""
        maps = (Path(f"/proc/self/{kind}_map").read_text() for kind in ("uid", "gid"))
        users, groups = ([[int(field) for field in line.split()] for line in each.splitlines()] for each in maps)
        for start, outside, count in users if os.geteuid() == 0 else ():
            if count >= ID_COUNT and any(first == start and number >= ID_COUNT for first, _, number in groups):
                return cls(user=start, group=start, outside=outside)
        return cls(user=os.geteuid(), group=os.getegid(), count=1, outside=users[0][1])

    @property
    def is_whole(self) -> bool:
        """True if images find all their users."""
        return self.count == ID_COUNT


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
                    await run_sync(_map, Path(f"/proc/{maker.pid}"), ids)
                    maker.stdin.write(b"mapped\n")
                    if await maker.stdout.readline() == b"ready\n":
                        return cls(ids=ids, fd=os.open(f"/proc/{maker.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC))
                words = (await maker.stderr.read()).decode(errors="replace").strip()
        except OSError as error:
            words = str(error) or "it takes too long"
        finally:
            with anyio.CancelScope(shield=True):
                maker.stdin.close()
                await maker.wait()
        raise BoxStartFailed(f"this machine gives no user namespace: {words}")

    def close(self) -> None:
        os.close(self.fd)


def _map(process: Path, ids: IdMap) -> None:
    """Raises OSError."""
    if os.geteuid() != 0:  # else a user could leave groups that keep him out
        (process / "setgroups").write_text("deny")
    for kind, start in (("uid", ids.user), ("gid", ids.group)):
        (process / f"{kind}_map").write_text(f"0 {start} {ids.count}\n")
