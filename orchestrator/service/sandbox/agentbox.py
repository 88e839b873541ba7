"""What the boxes of this machine have in common: booting the agent, running commands, dying, being removed.

Its secret: the order of things around a box's end. Its processes go first, then everyone who waits is told, then its
limits and files go; and every road there (stop, a failed boot, a killed box, an agent that talks nonsense, a full disk)
is this one. The two providers differ only in how the agent is launched and how everything in the box is ended.
"""

import asyncio
import os
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import IO

import anyio
import anyio.to_thread
import structlog

from orchestrator.service.sandbox.agent_connection import AgentProcess, Link
from orchestrator.service.sandbox.child_process import Child
from orchestrator.service.sandbox.disk import DiskWatch, Watched
from orchestrator.service.sandbox.folders import BoxFolder
from orchestrator.service.sandbox.limits import NO_GROUP, Group, keep_expendable
from orchestrator.service.sandbox.provider import BoxDied, BoxSpec, BoxStartFailed, Command, Limit, RemainingProcesses
from orchestrator.service.sandbox.safe_fs import disk_usage
from orchestrator.service.sandbox.unlinked import descendants

AGENT = Path(__file__).with_name("boxagent.py")
#: Hundreds of boxes that boot at once on a few cores take their time.
BOOT_PATIENCE = 120.0
END_PATIENCE = 10.0
#: How long an agent may take to end what runs in its box; then it is killed itself.
AGENT_PATIENCE = 5.0
#: How long a box whose agent hung up may take to say how it ended.
LAST_WORDS = 0.05


class AgentBox(ABC):
    """One box with an exec agent in it; see `contract.Box`."""

    def __init__(
        self,
        spec: BoxSpec,
        folder: BoxFolder,
        watch: DiskWatch,
        forget: Callable[[], None],
        beside: "AgentBox | None" = None,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.group: Group = NO_GROUP
        self._watch = watch
        self._forget = forget
        self._link: Link | None = None
        self._child: Child | None = None
        self._why: str | None = None
        self._is_broken_from_inside = False
        self._host = beside
        self.guests: list[AgentBox] = []
        self._dead = anyio.Event()
        self._used = 0
        self._booting = anyio.CancelScope()
        self._boot_over = anyio.Event()
        self._stopping: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def enforced(self) -> frozenset[Limit]:
        return self.group.enforced | {Limit.DISK}

    @property
    def is_broken_from_inside(self) -> bool:
        return self._is_broken_from_inside

    def path(self, path: str) -> str:
        return path

    def place(self, path: str) -> Path:
        return self.folder.files / path.strip("/")

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What every command finds in its environment, before the spec's and its own."""

    def prepare(self) -> None:
        """Make what the box needs before it boots. Blocking."""
        self.folder.create(self.spec)
        self._used = disk_usage(self.folder.files) if self.spec.root is not None else 0

    @abstractmethod
    async def launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the agent with the socket `control`; what goes wrong before it is ready goes to `errors`."""

    @abstractmethod
    def strike(self) -> None:
        """End everything in the box, without waiting."""

    def pids(self) -> Iterable[int]:
        """The host's ids of the box's processes: idle ones of ours, until the first command."""
        return () if self._child is None or self._child.gone.is_set() else descendants(self._child.pid)

    @abstractmethod
    def booted(self) -> None:
        """The agent is ready; nothing of the user's has run yet."""

    @abstractmethod
    async def release(self) -> None:
        """Give back what the box was lent, after its end."""

    async def everything_gone(self) -> None:
        """Wait until no process of the box is left."""
        if self._child is not None:
            await self._child.gone.wait()

    async def boot(self) -> None:
        """Boot; on any failure nothing is left. Raises BoxStartFailed."""
        try:
            with self._booting:
                if self._host is not None:
                    self._host.take_in(self)
                await self._boot()
        except BaseException:
            self._boot_over.set()
            await self.stop()
            raise
        self._boot_over.set()
        if self._booting.cancelled_caught or self._why is not None:
            await self.stop()
            raise BoxStartFailed(f"devbox {self.id}: {self._why} while it booted")
        self._watch.add(
            Watched(
                folder=self.folder.files,
                limit=self.spec.resources.disk,
                used=self._used,
                exceeded=self.break_down,
                lost=self.end,
                pids=self.pids,
                owner=os.geteuid() if self.folder.owner is None else self.folder.owner,
            )
        )

    def take_in(self, guest: "AgentBox") -> None:
        """Another box is to use this one's files: it ends before these go. Raises BoxStartFailed when they do."""
        if self._stopping is not None:
            raise BoxStartFailed(f"devbox {guest.id}: the box whose files it was to use is gone")
        self.guests.append(guest)

    async def _boot(self) -> None:
        try:
            with anyio.fail_after(BOOT_PATIENCE):
                await anyio.to_thread.run_sync(self.prepare)
                await self._start_agent()
                await anyio.to_thread.run_sync(self._limit)
        except TimeoutError:
            raise BoxStartFailed(f"devbox {self.id}: it was not ready after {BOOT_PATIENCE:.0f} s") from None
        except OSError as error:
            raise BoxStartFailed(f"devbox {self.id}: {error}") from error

    async def _start_agent(self) -> None:
        ours, theirs = socket.socketpair()
        link = self._link = Link(ours, self._hung_up, owner=self.folder.owner)
        with theirs, _scratch() as errors:
            with anyio.CancelScope(shield=True):
                self._child = Child(await self.launch(theirs.fileno(), errors), self._ended)
            theirs.close()
            async with anyio.create_task_group() as race:
                race.start_soon(_first, link.ready, race.cancel_scope)
                race.start_soon(_first, self._dead, race.cancel_scope)
            if self._dead.is_set() or not link.ready.is_set():
                errors.seek(0)
                words = errors.read(4096).decode(errors="replace").strip()
                raise BoxStartFailed(f"devbox {self.id}: {words or self._why}")
        self.booted()

    def _limit(self) -> None:
        try:
            pids = tuple(self.pids())
            keep_expendable(pids)
            self.group.add(pids)
        except OSError as error:
            structlog.get_logger().warning("devbox.limits_refused", devbox=self.id, error=str(error))
            self.group.remove()
            self.group = NO_GROUP

    async def spawn(self, command: Command) -> AgentProcess:
        if self._why is not None or self._link is None:
            raise BoxDied(f"devbox {self.id}: {self._why}")
        given = {} if command.is_plain else dict(self.spec.environment)
        environment = self.environment() | given | dict(command.environment)
        folder = PurePosixPath(self.spec.working_directory) / (command.cwd or "")
        return self._link.spawn(self.path(str(folder)), command.argv, environment, stdin=command.stdin)

    async def listen(self, port: int) -> socket.socket:
        if self._why is not None or self._link is None:
            raise BoxDied(f"devbox {self.id}: {self._why}")
        return await self._link.listen(port)

    async def export(self, target: Path, only: str = "") -> None:
        await anyio.to_thread.run_sync(self.folder.export, target, self.spec, only)

    async def remaining(self) -> RemainingProcesses:
        return RemainingProcesses()

    async def retire(self) -> None:
        """Raises BoxDied where something in it does not end."""
        self.end("retired")
        with anyio.move_on_after(END_PATIENCE):
            await self.everything_gone()
            await self._dead.wait()
            return
        raise BoxDied(f"devbox {self.id}: what runs in it did not end in {END_PATIENCE:g} s")

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
        with anyio.move_on_after(END_PATIENCE) as bounds:
            await self.everything_gone()
        if bounds.cancelled_caught:
            structlog.get_logger().error("devbox.undead", devbox=self.id, patience=END_PATIENCE)
        self._finish()
        await self._watch.discard(self.folder.files)
        try:
            await anyio.to_thread.run_sync(self._clear)
        except OSError as error:
            structlog.get_logger().error("devbox.files_left", devbox=self.id, error=str(error))
        await self.release()
        if self._host is not None and self in self._host.guests:
            self._host.guests.remove(self)
        self._forget()

    def _clear(self) -> None:
        self.group.remove()
        self.folder.remove()

    def break_down(self, why: str) -> None:
        """End the box for what was done in it, and those that use its files."""
        self._is_broken_from_inside |= self._why is None
        self.end(why)
        for guest in self.guests:
            guest.break_down(why)

    def end(self, why: str) -> None:
        """End the box now; the first reason given stays."""
        if self._why is None:
            self._why = why
        self.strike()
        if self._child is None:
            self._finish()
        else:
            asyncio.get_running_loop().call_later(AGENT_PATIENCE, self._child.kill)

    def _hung_up(self, why: str | None) -> None:
        """The agent is not to be trusted or not there any more: it is not asked to end its box."""
        if why is not None:
            self.break_down(why)
            self._silence()
        else:
            asyncio.get_running_loop().call_later(LAST_WORDS, self._silence)

    def _silence(self) -> None:
        self.strike()
        if self._child is not None:
            self._child.kill()

    def _ended(self, status: int) -> None:
        self.strike()
        if self._why is None:
            is_out_of_memory = self.group.out_of_memory()
            self._is_broken_from_inside = is_out_of_memory or _signal_of(status) is None
            self._why = "out of memory" if is_out_of_memory else _describe(status)
        self._finish()

    def _finish(self) -> None:
        if self._link is not None:
            self._link.close(f"devbox {self.id}: {self._why}")
        self._dead.set()


def _scratch() -> IO[bytes]:
    """A place for the last words of a program that does not start."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("devbox-errors"), "w+b")
    return tempfile.TemporaryFile()


async def _first(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _signal_of(status: int) -> int | None:
    """The signal that ended the agent's process, through bubblewrap or directly."""
    number = -status if status < 0 else status - 128
    return number if 0 < number < 65 else None


def _describe(status: int) -> str:
    number = _signal_of(status)
    return f"its agent ended with status {status}" if number is None else f"killed by signal {number}"
