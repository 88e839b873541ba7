"""Our end of a worker process: starts `worker.py`, talks frames with it, brings home what it prints, and ends it.

Ending is one act, closing the socket: the supervisor in the worker then kills the agent's whole tree. The kernel closes
the socket for us when we are killed, so nothing outlives a `kill -9` of the sweep, and no signal has to find its way
to processes we never heard of. Killing from here is only for a supervisor that does not answer.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import Process, TaskGroup

from orchestrator.agentkit import worker
from orchestrator.errors import UsageError

Header = Mapping[str, Any]
Frame = tuple[Header, bytes]
Answer = Callable[[Header, bytes], Awaitable[Frame]]

#: Seconds a worker may take to end by itself after it reported, e.g. for threads the agent left running.
LINGER: Final = 10.0
_END: Final = 5.0
_AT_ONCE: Final = 64
_TAIL: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a worker ended: its exit status (None: out of time), its report if it made one, the end of its output."""

    exit_status: int | None
    report: Header | None
    output: str


async def run_worker(
    python: Path,
    job: Frame,
    *,
    environment: Mapping[str, str],
    answer: Answer,
    log: Callable[[bytes], None],
    time_limit: float,
    started: Callable[[int], None] = lambda _: None,
    linger: float = LINGER,
) -> Ended:
    """Run a job in a worker of its own to the end, or end it with all it started after `time_limit` seconds.

    Each request of the worker goes to `answer`, up to 64 at once; what `answer` or `log` raises ends the worker and is
    raised here. `started` is told the worker's process id. Raises UsageError if the interpreter cannot be started. No
    process is left on return, whatever happens.
    """
    with anyio.CancelScope(shield=True):  # asyncio forgets a process whose start is cancelled
        process, reader, writer = await _start(python, environment)
    started(process.pid)
    conversation = _Conversation(process=process, reader=reader, writer=writer, answer=answer, log=log, linger=linger)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(conversation.collect)
        try:
            with anyio.move_on_after(time_limit) as conversation.scope:
                await conversation.hold(job)
        finally:
            await conversation.end()
    return conversation.ended()


def birth(pid: int) -> str:
    """What tells a process from a later one with its number: the boot, and the clock ticks from it to its start.

    Empty if there is no such process any more.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot} {fields[19]}"


async def end_process(pid: int, its_birth: str) -> None:
    """Make sure that a worker of an earlier process of ours is gone, with its session. Bounded."""
    if not its_birth or birth(pid) != its_birth:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with anyio.move_on_after(_END):
        while birth(pid) == its_birth:  # noqa: ASYNC110 - not a child of ours: nobody announces its end
            await anyio.sleep(0.05)


async def _start(
    python: Path, environment: Mapping[str, str]
) -> tuple[Process, asyncio.StreamReader, asyncio.StreamWriter]:
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            process = await anyio.open_process(
                [str(python), worker.__file__],
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except BaseException as error:
            writer.transport.abort()
            if isinstance(error, OSError):
                raise UsageError(f"{python}: this Python cannot be started: {error.strerror}") from error
            raise
    return process, reader, writer


@dataclass(slots=True, kw_only=True)
class _Conversation:
    process: Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    answer: Answer
    log: Callable[[bytes], None]
    linger: float
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    collecting: anyio.CancelScope = field(default_factory=lambda: anyio.CancelScope(shield=True))
    collected: anyio.Event = field(default_factory=anyio.Event)
    heard_all: anyio.Event = field(default_factory=anyio.Event)
    output: bytearray = field(default_factory=bytearray)
    report: Header | None = None
    failure: Exception | None = None
    is_broken: bool = False

    async def collect(self) -> None:
        """Hand on what the worker prints until the last holder of its output has ended."""
        assert self.process.stdout is not None
        with self.collecting:
            try:
                async for chunk in self.process.stdout:
                    self.log(chunk)
                    self.output = (self.output + chunk)[-_TAIL:]
            except Exception as error:  # noqa: BLE001 - raised again by `ended`
                self._fail(error)
        self.collected.set()

    async def hold(self, job: Frame) -> None:
        """Give the worker its job and answer its requests until it has ended."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen, tasks)
            await self._send(*job)
            await self.process.wait()
            with anyio.move_on_after(_END):
                await self.heard_all.wait()
            tasks.cancel_scope.cancel()

    async def _listen(self, tasks: TaskGroup) -> None:
        free = anyio.Semaphore(_AT_ONCE)
        try:
            while True:
                header, body = await self._receive()
                if header.get("op") == "result":
                    self.report = {**header, "status": int(header.get("status", 1))}
                    tasks.start_soon(self._linger)
                    break
                await free.acquire()
                tasks.start_soon(self._answer, header, body, free)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it has ended, which is seen elsewhere
        except (ValueError, TypeError, RecursionError) as error:
            self._note(f"the agent's process sent what is not a frame: {error}\n")
            self.is_broken = True
            self.scope.cancel()
        self.heard_all.set()

    async def _linger(self) -> None:
        await anyio.sleep(self.linger)
        self._note(f"the agent's process had not ended {self.linger:g} seconds after the agent, and was killed\n")
        self.scope.cancel()

    async def _answer(self, header: Header, body: bytes, free: anyio.Semaphore) -> None:
        try:
            reply, data = await self.answer(header, body)
            await self._send({**reply, "id": header.get("id")}, data)
        except ConnectionError:
            pass  # nobody waits for it any more
        except Exception as error:  # noqa: BLE001 - raised again by `ended`
            self._fail(error)
        finally:
            free.release()

    async def _receive(self) -> Frame:
        sizes = worker.decode_sizes(await self.reader.readexactly(worker.FRAME_START))
        header = worker.decode_header(await self.reader.readexactly(sizes[0]))
        return header, await self.reader.readexactly(sizes[1])

    async def _send(self, header: Header, body: bytes) -> None:
        try:
            frame = worker.encode_frame(dict(header), body)
        except ValueError as error:
            frame = worker.encode_frame({"id": header.get("id"), "error": "ValueError", "message": str(error)})
        self.writer.write(frame)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    def _note(self, line: str) -> None:
        self.output += line.encode()
        self.log(line.encode())

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.scope.cancel()

    async def end(self) -> None:
        """Leave no process, no task, no descriptor. Bounded."""
        with anyio.CancelScope(shield=True):
            self.writer.transport.abort()
            with anyio.move_on_after(_END):
                await self.process.wait()
            if self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            with anyio.move_on_after(_END):
                await self.process.wait()
                await self.collected.wait()
            self.collecting.cancel()
            with anyio.move_on_after(_END):
                await self.process.aclose()

    def ended(self) -> Ended:
        """How it ended; raises what stopped us from going on."""
        if self.failure is not None:
            raise self.failure
        return Ended(exit_status=self._status(), report=self.report, output=self.output.decode(errors="replace"))

    def _status(self) -> int | None:
        if self.is_broken:
            return 1
        if self.report is not None:
            return int(self.report["status"]) & 0xFF
        if self.scope.cancelled_caught:
            return None
        status = self.process.returncode
        if not status:
            self._note("the agent's process ended before the agent had returned\n")
            return 1
        return status if status > 0 else 128 - status
