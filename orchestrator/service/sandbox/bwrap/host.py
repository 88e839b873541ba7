"""This machine as a host of sandboxes: everything that the boxes of one service share, and why it may refuse them.

Its secret: the state folder's layout (`shared/` for what every box reads, `boxes/` for what each one writes, `disks/`
for disks of their own), and that everything a sandbox opens is named by the spawner's private mounts, never by the
host's path. bubblewrap reads the whole table of mounts after each of its own, and the line of an image is long in it;
so the spawner has an image's mount only while a box of it starts, and a thread beside it, `roots`, keeps those of all
boxes.

As root, every box runs as a user of its own from a range in which no account exists. User 1000 of the box is then a
stranger to the host and to every other box, even for a program that gets out, and what the kernel counts per user
(pipes, keys, watches) it counts per box. An ordinary user who is lent ids gives these (`own_ids`); one who is not has
one identity to give, its own, and so has the root of a user namespace that maps no other. "nobody" would not do: other
services run as it, and file systems reserve blocks.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import anyio
import anyio.to_thread
import structlog

from orchestrator.common.cache_folder import cache_folder
from orchestrator.core.errors import SandboxUnavailable
from orchestrator.core.protocol import DiskLimit, Isolation
from orchestrator.service.sandbox.bwrap.bwrap_args import HostPython, isolation, seccomp_filter, system
from orchestrator.service.sandbox.bwrap.disks import Disks, what_mends
from orchestrator.service.sandbox.bwrap.image_files import IdRanges, Images
from orchestrator.service.sandbox.bwrap.overlay import NESTED, REMEDY
from orchestrator.service.sandbox.bwrap.public_network import PublicNetworks
from orchestrator.service.sandbox.bwrap.shared_files import copy_for_others, find_bubblewrap, furnish
from orchestrator.service.sandbox.bwrap.spawner import Guard, Spawner
from orchestrator.service.sandbox.closure import Closures
from orchestrator.service.sandbox.limits import Cgroups
from orchestrator.service.sandbox.own_ids import STATE
from orchestrator.service.sandbox.provider import BoxStartFailed
from orchestrator.service.sandbox.safe_fs import remove
from orchestrator.service.sandbox.user_namespace import ID_COUNT, IdMap

TRIAL_TIMEOUT_S = 30.0
#: Users of boxes: above the ranges of systemd, containers and sub-users, below 2^31.
FIRST_USER, USER_COUNT = 1_900_000_000, 8192
#: The end of the users of boxes of images, which have ID_COUNT each.
LAST_USER = 1 << 31
UID_MAP = Path("/proc/self/uid_map")
ALTERNATIVE = f"or choose `--isolation {Isolation.NONE}`, which runs the code without a sandbox"
#: A setting of the kernel, the value that forbids sandboxes, and the command that makes it allow them.
RULES = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=65536"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (or an AppArmor profile for bwrap with `userns,`)",
    ),
)
CONTAINER_FLAGS = (
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
)
CONTAINER_SIGNS = (Path("/.dockerenv"), Path("/run/.containerenv"))


def user_range(uid_map: str) -> range:
    """The users that boxes may run as, given the text of /proc/self/uid_map (user_namespaces(7))."""
    rows = [[int(field) for field in line.split()] for line in uid_map.splitlines()]
    if any(inside <= FIRST_USER and inside + count >= FIRST_USER + USER_COUNT for inside, _, count in rows):
        return range(FIRST_USER, FIRST_USER + USER_COUNT)
    inside, _, count = max(rows, key=lambda row: row[2])
    last = inside + count - (2 if count > 2 else 1)
    return range(max(inside + 1, last - USER_COUNT), last)


def id_starts(uid_map: str) -> range:
    """First users of the ranges that boxes of images may have, given the text of /proc/self/uid_map; maybe none."""
    first = FIRST_USER + ID_COUNT
    rows = [[int(field) for field in line.split()] for line in uid_map.splitlines()]
    ends = [min(inside + count, LAST_USER) for inside, _, count in rows if inside <= first]
    return range(first, max(ends, default=first) - ID_COUNT + 1, ID_COUNT)


class Users:
    """Lends users to boxes; lends None, our own, where there is no other: see the head of this file."""

    def __init__(self) -> None:
        users = list(reversed(user_range(UID_MAP.read_text()))) if os.geteuid() == 0 else []
        self._free = users or None

    def lend(self) -> int | None:
        if self._free is None:
            return None
        if not self._free:
            raise BoxStartFailed("no user is left for another devbox; stop some devboxes first")
        return self._free.pop()

    def give_back(self, user: int | None) -> None:
        if self._free is not None and user is not None:
            self._free.append(user)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPaths:
    """Paths that any user can open: bubblewrap, the folders `shared` and `boxes`, Python's if it is not in /usr."""

    program: str
    shared: str
    boxes: str
    prefix: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BwrapHost:
    """This machine, ready for sandboxes."""

    state: Path
    spawner: Spawner
    roots: Spawner
    users: Users
    cgroups: Cgroups
    python: HostPython
    paths: SharedPaths
    guard: Guard
    images: Images
    public: PublicNetworks | None
    disks: Disks | None = None
    hidden: tuple[Path, ...] = ()

    @classmethod
    async def prepare(
        cls, state: Path, *, hidden: tuple[Path, ...] = (), disk_limit: DiskLimit = DiskLimit.WATCHED
    ) -> "BwrapHost":
        """Make `state` ready, and remove boxes that an earlier service left there. Raises SandboxUnavailable.

        No box sees the content of the folders `hidden`, wherever on the host they are.
        """
        if sys.platform != "linux":
            raise SandboxUnavailable(f"sandboxed devboxes need Linux; here, choose `--isolation {Isolation.NONE}`")
        python = HostPython.ours()
        bubblewrap = await anyio.to_thread.run_sync(_lay_out, state)
        await anyio.to_thread.run_sync(furnish, state / "shared", python.program)
        cgroups = await anyio.to_thread.run_sync(Cgroups.find)
        roots = Spawner()
        spawner, guard = Spawner(roots), await anyio.to_thread.run_sync(Guard)
        try:
            for each in (spawner, roots):
                await each.run(partial(_take_private_mounts, each))
            host = cls(
                state=state,
                spawner=spawner,
                roots=roots,
                users=Users(),
                cgroups=cgroups,
                python=python,
                paths=await spawner.run(partial(_admit_all, spawner, state, bubblewrap, python)),
                guard=guard,
                images=Images(state / "shared", _ranges(), Closures(cache_folder()), spawner),
                public=await PublicNetworks.find(spawner, guard, state / "shared"),
                disks=Disks(state / "disks") if disk_limit is DiskLimit.HARD else None,
                hidden=hidden,
            )
            await host.check()
        except BaseException:
            with anyio.CancelScope(shield=True):
                for close in (spawner.close, roots.close, guard.close, cgroups.close):
                    await anyio.to_thread.run_sync(close)
            raise
        return host

    async def check(self) -> None:
        """Start a sandbox that does nothing. Raises SandboxUnavailable."""
        user = self.users.lend()
        try:
            words = await self.spawner.run(partial(self._trial, user))
        finally:
            self.users.give_back(user)
        if words is not None:
            raise explain(words)
        if self.disks is not None:
            try:
                await self.spawner.run(self.disks.check)
            except OSError as error:
                why = f"this machine gives no devbox a disk of its own ({error})"
                raise SandboxUnavailable(
                    f"--disk-limit {DiskLimit.HARD}: {why}: {what_mends(error)}, or leave it out"
                ) from None

    def _trial(self, user: int | None) -> str | None:
        arguments = [self.paths.program, *isolation(), *system(), "--ro-bind", self.paths.shared, "/mnt"]
        arguments += ["--unshare-net", "--proc", "/proc", "--dev", "/dev"]
        with tempfile.TemporaryFile() as errors, in_memory(seccomp_filter()) as calls:
            arguments += ["--seccomp", str(calls.fileno()), "/bin/sh", "-c", ":"]
            try:
                popen = self.guard.start(arguments, user=user, fds=(calls.fileno(),), errors=errors)
            except OSError as error:
                return str(error)
            with popen:
                try:
                    popen.wait(timeout=TRIAL_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    popen.kill()
            self.guard.forget(popen.pid)
            errors.seek(0)
            words = errors.read(4096).decode(errors="replace")
        return words if popen.returncode != 0 else None

    async def close(self) -> None:
        for close in (self.spawner.close, self.roots.close, self.guard.close, self.images.close, self.cgroups.close):
            await anyio.to_thread.run_sync(close)


def _lay_out(state: Path) -> Path:
    """Make the folders, and bubblewrap ready for every user; returns its path on the host."""
    shared, boxes = state / "shared", state / "boxes"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove(boxes)
    remove(state / "disks")
    for folder, mode in ((shared, 0o755), (boxes, 0o711)):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
    bubblewrap = find_bubblewrap()
    return copy_for_others(bubblewrap, shared / "bubblewrap") if os.geteuid() == 0 else bubblewrap.path


def _take_private_mounts(spawner: Spawner) -> None:
    """In the spawner's thread."""
    if os.geteuid() == 0:
        try:
            spawner.take_private_mounts()
        except OSError as error:  # what others cannot reach stays out of reach, and the trial reports it
            structlog.get_logger().info("devbox.no_gate", error=str(error))


def _admit_all(spawner: Spawner, state: Path, bubblewrap: Path, python: HostPython) -> SharedPaths:
    """Name what sandboxes open; in the spawner's thread."""
    shared = spawner.admit(state / "shared")
    is_copy = bubblewrap.is_relative_to(state / "shared")
    return SharedPaths(
        program=f"{shared}/{bubblewrap.relative_to(state / 'shared')}" if is_copy else os.fspath(bubblewrap),
        shared=shared,
        boxes=spawner.admit(state / "boxes"),
        prefix=None if python.prefix is None else spawner.admit(python.prefix),
    )


def in_memory(data: bytes) -> IO[bytes]:
    """A file with this content for bubblewrap to read."""
    file = os.fdopen(os.memfd_create("devbox-given"), "w+b")
    file.write(data)
    file.seek(0)
    return file


def explain(words: str, *, settings: Path = Path("/proc/sys"), container: bool | None = None) -> SandboxUnavailable:
    """Make the error for a trial sandbox that failed with the message `words`.

    bubblewrap names the system call that failed; the rule of this machine that made it fail is read from /proc.
    """
    said = words.strip() or "it ended without a word"
    fix = next(fixes(said, settings=settings, container=container))
    return SandboxUnavailable(f"this machine does not permit sandboxes ({said}): {fix}; {ALTERNATIVE}")


def fixes(words: str, *, settings: Path = Path("/proc/sys"), container: bool | None = None) -> Iterator[str]:
    """Yield what may mend a machine where a trial sandbox failed with the message `words`, the likeliest first."""
    if NESTED in words:
        yield REMEDY
    yield from _forbidding(settings)
    if "source path" in words:
        yield "put the state folder where other users can reach it, or start as an ordinary user"
    if any(sign.exists() for sign in CONTAINER_SIGNS) if container is None else container:
        yield f"start the container with `{CONTAINER_FLAGS}`"
    yield "allow unprivileged user namespaces to bwrap"


def _forbidding(settings: Path = Path("/proc/sys")) -> Iterator[str]:
    """Yield a fix for each rule of this machine that forbids sandboxes."""
    for name, forbidding, command in RULES:
        with suppress(OSError):
            if (settings / name).read_text().strip() == forbidding:
                yield f"as root, `{command}`"


def _ranges() -> IdRanges:
    if os.geteuid() == 0:
        return IdRanges(id_starts(UID_MAP.read_text()), IdMap.own())
    fix = next(_forbidding(), "allow user namespaces, and overlays in them, to ordinary users")
    words = STATE.obstacle or "nothing was tried: `sweep serve` does that"
    if NESTED in words:
        return IdRanges((), IdMap.own(), f"devboxes of images cannot run here: {words}")
    obstacle = f"this machine permits no devboxes of images to an ordinary user ({words}): {fix}, or start as root"
    return IdRanges((), IdMap.own(), obstacle)
