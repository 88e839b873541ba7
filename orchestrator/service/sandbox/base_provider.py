"""The base of the two providers of this machine: boxes with our exec agent in them, and the books of such boxes.

Its secret: the order of things around a box's end. Its processes go first, then every waiting caller is told, then its
limits and files go; and every road there (stop, a failed boot, a killed box, an agent that sends nonsense, a full disk)
is this one. The two providers differ only in how they launch the agent and how they end everything in a box.

Boots queue, for two hundred interpreters starting at once on two cores would each take seconds; a few at a time are
each ready in a blink, and the last is ready no later.
"""

import asyncio
import os
import re
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, ClassVar, Generic, TypeVar

import anyio
import anyio.to_thread
import structlog

from orchestrator.core.protocol import DiskLimit
from orchestrator.service.sandbox.agent_connection import AgentConnection, AgentProcess
from orchestrator.service.sandbox.disk import DiskWatch, WatchedBox
from orchestrator.service.sandbox.folders import BoxFolder
from orchestrator.service.sandbox.limits import NO_CGROUP, Cgroup, keep_expendable
from orchestrator.service.sandbox.processes import ChildProcess, descendants, freeze, thaw
from orchestrator.service.sandbox.provider import (
    LOGIN_SHELL,
    Box,
    BoxDied,
    BoxSpec,
    BoxStartFailed,
    Capability,
    Command,
    Limit,
    RemainingProcesses,
    Written,
)
from orchestrator.service.sandbox.safe_fs import disk_usage

S = TypeVar("S")
AGENT = Path(__file__).with_name("boxagent.py")
#: An id names a folder and a control group.
GOOD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: Long, for hundreds of boxes may boot at once on a few cores.
BOOT_TIMEOUT_S = 120.0
END_TIMEOUT_S = 10.0
#: Time for an agent to end what runs in its box; then the agent is killed.
AGENT_GRACE_S = 5.0
#: Time for the exit status of a box whose agent hung up to arrive.
EXIT_STATUS_GRACE_S = 0.05


class AgentBox(ABC):
    """One box with an exec agent in it; see `provider.Box`.

    `forget` is called once it is gone. A box with a `beside` uses the files of that one.
    """

    def __init__(
        self,
        spec: BoxSpec,
        folder: BoxFolder,
        watch: DiskWatch,
        forget: Callable[[], object],
        beside: "AgentBox | None" = None,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.cgroup: Cgroup = NO_CGROUP
        self.guests: list[AgentBox] = []
        self._watch = watch
        self._forget = forget
        self._beside = beside
        self._connection: AgentConnection | None = None
        self._child: ChildProcess | None = None
        self._why: str | None = None
        self._is_broken_from_inside = False
        self._dead = anyio.Event()
        self._used = 0
        self._frozen: frozenset[int] = frozenset()
        self._booting = anyio.CancelScope()
        self._boot_over = anyio.Event()
        self._stopping: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def enforced(self) -> frozenset[Limit]:
        return self.cgroup.enforced | {Limit.DISK}

    @property
    def has_own_disk(self) -> bool:
        """Tells whether it finds its disk full at its limit, instead of being ended."""
        return False

    @property
    def has_one_user(self) -> bool:
        return False

    @property
    def is_broken_from_inside(self) -> bool:
        return self._is_broken_from_inside

    @property
    def shell(self) -> tuple[str, ...]:
        return LOGIN_SHELL

    def path(self, path: str) -> str:
        return path

    def place(self, path: str) -> Path:
        return self.folder.files / path.strip("/")

    @property
    def written(self) -> Written:
        return Written(own=self.folder.files)

    @property
    def tools(self) -> str | None:
        return None

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Variables of every command, before the spec's and its own."""

    def variables(self, command: Command) -> dict[str, str]:
        """All variables of a command."""
        given = {} if command.is_plain else dict(self.spec.environment)
        return self.environment() | given | dict(command.environment)

    def prepare(self) -> None:
        """Make what the box needs before it boots. Blocking."""
        self.folder.create(self.spec)
        self._used = disk_usage(self.folder.files) if self.spec.root is not None else 0

    @abstractmethod
    async def launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the agent with the socket `control`; errors before it is ready go to `errors`."""

    @abstractmethod
    async def on_ready(self) -> None:
        """Called when the agent is ready; no program of the user has run yet. Raises BoxStartFailed."""

    @abstractmethod
    def kill(self) -> None:
        """End everything in the box, without waiting."""

    async def wait_gone(self) -> None:
        """Wait until no process of the box is left."""
        if self._child is not None:
            await self._child.gone.wait()

    async def unmount(self) -> None:
        """Take down what is mounted over its folder, which goes next. Raises OSError."""
        return

    @abstractmethod
    async def release(self) -> None:
        """Give back what the box was lent, after its end."""

    def pids(self) -> Iterable[int]:
        """The host's ids of the box's processes; only our own idle ones, until the first command."""
        return () if self._child is None or self._child.gone.is_set() else descendants(self._child.pid)

    async def boot(self) -> None:
        """Boot; on any failure nothing is left. Raises BoxStartFailed."""
        try:
            with self._booting, anyio.fail_after(BOOT_TIMEOUT_S):
                if self._beside is not None:
                    self._beside.add_guest(self)
                await anyio.to_thread.run_sync(self.prepare)
                await self._start_agent()
                await anyio.to_thread.run_sync(self._limit)
        except BaseException as error:
            self._boot_over.set()
            await self.stop()
            if isinstance(error, TimeoutError):
                raise BoxStartFailed(f"devbox {self.id}: it was not ready after {BOOT_TIMEOUT_S:.0f} s") from None
            if isinstance(error, OSError):
                raise BoxStartFailed(f"devbox {self.id}: {error}") from error
            raise
        self._boot_over.set()
        if self._booting.cancelled_caught or self._why is not None:
            await self.stop()
            raise BoxStartFailed(f"devbox {self.id}: {self._why} while it booted")
        if not self.has_own_disk:
            self._watch.add(self._watched())

    def _watched(self) -> WatchedBox:
        owner = os.geteuid() if self.folder.owner is None else self.folder.owner
        return WatchedBox(
            folder=self.folder.files,
            limit=self.spec.resources.disk,
            used=self._used,
            exceeded=self.break_down,
            lost=self.end,
            pids=self.pids,
            owners=range(owner, owner + 1),
        )

    def add_guest(self, guest: "AgentBox") -> None:
        """Let another box use this one's files: it ends before they go. Raises BoxStartFailed if they are going."""
        if self._stopping is not None:
            raise BoxStartFailed(f"devbox {guest.id}: the box whose files it was to use is gone")
        self.guests.append(guest)

    async def _start_agent(self) -> None:
        ours, theirs = socket.socketpair()
        connection = self._connection = AgentConnection(ours, self._on_hang_up, owner=self.folder.owner)
        with theirs, _scratch_file() as errors:
            with anyio.CancelScope(shield=True):
                self._child = ChildProcess(await self.launch(theirs.fileno(), errors), self._on_exit)
            theirs.close()
            async with anyio.create_task_group() as race:
                race.start_soon(_cancel_after, connection.ready, race.cancel_scope)
                race.start_soon(_cancel_after, self._dead, race.cancel_scope)
            if self._dead.is_set() or not connection.ready.is_set():
                errors.seek(0)
                words = errors.read(4096).decode(errors="replace").strip()
                raise BoxStartFailed(f"devbox {self.id}: {words or self._why}")
        await self.on_ready()

    def _limit(self) -> None:
        try:
            pids = tuple(self.pids())
            keep_expendable(pids)
            self.cgroup.add(pids)
        except OSError as error:
            structlog.get_logger().warning("devbox.limits_refused", devbox=self.id, error=str(error))
            self.cgroup.remove()
            self.cgroup = NO_CGROUP

    async def spawn(self, command: Command) -> AgentProcess:
        if self._why is not None or self._connection is None:
            raise BoxDied(f"devbox {self.id}: {self._why}")
        variables = self.variables(command)
        folder = PurePosixPath(self.spec.working_directory) / (command.cwd or "")
        user = "" if command.is_plain and not command.as_user else self.spec.user
        user = user if command.user is None else command.user
        return self._connection.spawn(self.path(str(folder)), command.argv, variables, user=user, stdin=command.stdin)

    async def listen(self, port: int) -> socket.socket:
        if self._why is not None or self._connection is None:
            raise BoxDied(f"devbox {self.id}: {self._why}")
        return await self._connection.listen(port)

    async def export(self, target: Path, only: str = "") -> None:
        await anyio.to_thread.run_sync(self.folder.export, target, self.spec, only)

    async def keep_layer(self, target: Path, *, without: Sequence[str] = ()) -> None:
        if without:
            raise NotImplementedError(f"devbox {self.id} is of no image: nothing is as in that")
        await self.retire()
        await anyio.to_thread.run_sync(self.folder.hand_over, target)

    async def freeze(self) -> None:
        def others() -> Iterable[int]:
            """All but the one that sees the service die, and ends the others then."""
            return [pid for pid in self.pids() if self._child is None or pid != self._child.pid]

        if self._connection is not None:
            self._connection.moving = anyio.Event()
        self._frozen |= await anyio.to_thread.run_sync(freeze, others)

    async def thaw(self) -> None:
        frozen, self._frozen = self._frozen, frozenset()
        thaw(frozen.intersection(await anyio.to_thread.run_sync(self.pids)))
        if self._connection is not None:
            self._connection.moving.set()

    async def save(self, target: Path) -> None:
        await anyio.to_thread.run_sync(target.mkdir)
        await self.export(target)
        if self._stopping is not None:  # its files may have gone while they were copied
            raise BoxDied(f"devbox {self.id}: {self._why}")

    async def remaining(self) -> RemainingProcesses:
        return RemainingProcesses()

    async def retire(self) -> None:
        self.end("retired")
        with anyio.move_on_after(END_TIMEOUT_S):
            await self.wait_gone()
            await self._dead.wait()
            return
        raise BoxDied(f"devbox {self.id}: what runs in it did not end in {END_TIMEOUT_S:g} s")

    async def is_whole(self) -> bool:
        return True

    async def wait_dead(self) -> str:
        await self._dead.wait()
        return self._why or ""

    async def stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name=f"devbox-stop-{self.id}")
        with anyio.CancelScope(shield=True):
            await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        self._booting.cancel()
        await self._boot_over.wait()
        for guest in list(self.guests):
            await guest.stop()

        self.end("stopped")
        with anyio.move_on_after(END_TIMEOUT_S) as bounds:
            await self.wait_gone()
        if bounds.cancelled_caught:
            structlog.get_logger().error("devbox.undead", devbox=self.id, patience=END_TIMEOUT_S)
        self._finish()

        await self._watch.discard(self.folder.files)
        try:
            await anyio.to_thread.run_sync(self.cgroup.remove)
            await self.unmount()
            await anyio.to_thread.run_sync(self.folder.remove)
        except OSError as error:
            structlog.get_logger().error("devbox.files_left", devbox=self.id, error=str(error))
        try:
            await self.release()
        finally:
            if self._beside is not None and self in self._beside.guests:
                self._beside.guests.remove(self)
            self._forget()

    def break_down(self, why: str) -> None:
        """End the box, and those that use its files, because its own programs broke it."""
        self._is_broken_from_inside |= self._why is None
        self.end(why)
        for guest in self.guests:
            guest.break_down(why)

    def end(self, why: str) -> None:
        """End the box now; the first reason given stays."""
        if self._why is None:
            self._why = why
        self.kill()
        thaw(self._frozen)  # who is stopped ends nothing
        if self._connection is not None:
            self._connection.moving.set()
        if self._child is None:
            self._finish()
        else:
            asyncio.get_running_loop().call_later(AGENT_GRACE_S, self._child.kill)

    def _on_hang_up(self, why: str | None) -> None:
        """The agent cannot be trusted, or has gone: it is not asked to end its box."""
        if why is not None:
            self.break_down(why)
            self._kill_agent()
        else:
            asyncio.get_running_loop().call_later(EXIT_STATUS_GRACE_S, self._kill_agent)

    def _kill_agent(self) -> None:
        self.kill()
        if self._child is not None:
            self._child.kill()

    def _on_exit(self, status: int) -> None:
        """The agent's process has ended, or bubblewrap, which passes on a signal as 128 + its number."""
        self.kill()
        if self._why is None:
            number = -status if status < 0 else status - 128
            is_signal = 0 < number < 65
            is_out_of_memory = self.cgroup.out_of_memory()
            self._is_broken_from_inside = is_out_of_memory or not is_signal
            self._why = f"killed by signal {number}" if is_signal else f"its agent ended with status {status}"
            if is_out_of_memory:
                self._why = "out of memory"
        self._finish()

    def _finish(self) -> None:
        if self._connection is not None:
            self._connection.close(f"devbox {self.id}: {self._why}")
        self._dead.set()


def _scratch_file() -> IO[bytes]:
    """A file for the errors of a program that does not start."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("devbox-errors"), "w+b")
    return tempfile.TemporaryFile()


async def _cancel_after(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


class BaseProvider(ABC, Generic[S]):
    """A provider whose boxes live below `state`, a folder that one service owns; `S` is what the boxes share."""

    name: ClassVar[str]
    disk_limit: DiskLimit = DiskLimit.WATCHED
    capabilities: frozenset[Capability]
    #: Why its boxes lack a network of their own with the internet, though they have walls; "" if they do not lack it.
    no_public: str = ""

    def __init__(self, state: Path) -> None:
        self.state = state.absolute()
        self.watch = DiskWatch(self.state)
        self._boxes: dict[str, AgentBox] = {}
        self._shared: S | None = None
        self._preparing = anyio.Lock()
        self._closings = 0
        self._boots = anyio.CapacityLimiter(2 + 2 * (os.cpu_count() or 1))

    @abstractmethod
    async def open_shared(self) -> S:
        """Make what the boxes share, and remove what an earlier service left in `state`."""

    @abstractmethod
    async def close_shared(self, shared: S) -> None:
        """Give back what the boxes shared; none is left."""

    @abstractmethod
    def limits_of(self, shared: S) -> frozenset[Limit]:
        """The limits, without the disk's, that this machine holds boxes to."""

    @abstractmethod
    def make(self, spec: BoxSpec, shared: S, forget: Callable[[], object], beside: AgentBox | None) -> AgentBox:
        """Make a box without booting it; it calls `forget` when it is gone. Raises BoxStartFailed."""

    @property
    def enforced(self) -> frozenset[Limit]:
        """The limits that this machine holds boxes to; none before `prepare`."""
        return frozenset() if self._shared is None else self.limits_of(self._shared) | {Limit.DISK}

    async def start(self, spec: BoxSpec, *, beside: Box | None = None) -> AgentBox:
        """Boot a box. Raises BoxStartFailed, and SandboxUnavailable where this machine does not permit it at all."""
        if not GOOD_ID.fullmatch(spec.id):
            raise BoxStartFailed(f"devbox {spec.id!r}: an id has letters, digits, '.', '_' and '-' only")
        closings = self._closings
        async with self._boots:
            shared = await self._open(closings)
            if spec.id in self._boxes:
                raise BoxStartFailed(f"devbox {spec.id}: there is one of this id already")
            other = None if beside is None else self._boxes.get(beside.id)
            if other is not beside:
                raise BoxStartFailed(f"devbox {spec.id}: the box whose files it was to use is gone")
            forget = partial(self._boxes.pop, spec.id, None)
            box = self._boxes[spec.id] = self.make(spec, shared, forget, other)
            await box.boot()
        return box

    async def prepare(self) -> S:
        """Make ready what the boxes share, once. Raises SandboxUnavailable."""
        return await self._open(self._closings)

    async def _open(self, closings: int) -> S:
        async with self._preparing:
            if self._closings != closings:
                raise BoxStartFailed("the devbox cannot be started: its provider was closed meanwhile")
            if self._shared is None:
                self._shared = await self.open_shared()
            return self._shared

    async def close(self) -> None:
        """Stop every box, and start none of those that wait for their turn."""
        self._closings += 1
        with anyio.CancelScope(shield=True):
            async with self._preparing:
                async with anyio.create_task_group() as stops:
                    for box in list(self._boxes.values()):
                        stops.start_soon(box.stop)
                await self.watch.close()
                shared, self._shared = self._shared, None
                if shared is not None:
                    await self.close_shared(shared)
