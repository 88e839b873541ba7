"""Our end of a worker process: starts `worker/`, exchanges frames with it, collects its output, and ends it.

Ending is one act, closing the socket: the supervisor in the worker then kills the agent's whole tree. The kernel closes
the socket for us when we are killed, so nothing outlives a `kill -9` of the sweep, and no signal has to reach processes
that are unknown to us. Killing from here is only for a supervisor that does not answer.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import anyio
from anyio.abc import Process, TaskGroup

from orchestrator.agentkit.python import worker
from orchestrator.common.locks import birth
from orchestrator.core.errors import UsageError, WorldError

Header = Mapping[str, Any]
Frame = tuple[Header, bytes]
#: Sends a piece of an answer ahead of its end.
Send = Callable[[Header, bytes], Awaitable[None]]
Answer = Callable[[Header, bytes, Send], Awaitable[Frame]]

#: A worker may take so long to end by itself after its report, e.g. for threads that the agent left running.
LINGER_S: Final = 10.0
_END_TIMEOUT_S: Final = 5.0
_REQUESTS_AT_ONCE: Final = 64
_TAIL_BYTES: Final = 8192
#: An interpreter that is not there, not executable or not a program, or too large an environment for it.
_USERS_MISTAKES: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC, errno.E2BIG})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of a worker: its exit status (None: out of time), its report if it made one, the end of its output.

    `is_loaded` is true if it had loaded its agent. `facts` are what that agent says of itself: `takes`, the names of
    its parameters, `prepares`, whether it prepares its devbox, and more if it has FACTS.
    """

    exit_status: int | None
    report: Header | None
    output: str
    is_loaded: bool
    facts: Header = field(default_factory=dict)


async def unanswered(_header: Header, _body: bytes, _send: Send) -> Frame:
    """Answer the requests of a worker that has no workspace."""
    return {"error": "RuntimeError", "message": "there is no devbox here"}, b""


class Worker:
    """A worker process that has its first frame, `job`, and waits for the frame that it is run with.

    Each one that is started must be ended, by `run` or by `end`.
    """

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        #: The frame that lets an agent begin that has prepared its devbox.
        self.turn: Frame | None = None

    @classmethod
    async def start(cls, python: Path, job: Header, *, environment: Mapping[str, str]) -> Self:
        """Start a worker.

        Raises UsageError if the interpreter is at fault, WorldError if this machine has no room for another process.
        """
        try:
            process, reader, writer = await _start(python, environment)
        except OSError as error:
            words = f"{python}: this Python cannot be started: {error.strerror}"
            raise (UsageError(words) if error.errno in _USERS_MISTAKES else WorldError(words)) from error
        writer.write(worker.encode_frame(dict(job)))
        return cls(process, reader, writer)

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def run(
        self,
        *frame: Frame,
        log: Callable[[bytes], None],
        time_limit: float,
        answer: Answer = unanswered,
        note: Callable[[Header], None] = lambda _: None,
        started: Callable[[int], None] = lambda _: None,
        loaded: Callable[[], None] = lambda: None,
        linger: float = LINGER_S,
    ) -> Ended:
        """Wait for the end of the job, or kill it with all it started after `time_limit` seconds.

        A worker with an agent only loads it and ends unless it is given a `frame` to run it with. `answer` gets the
        worker's requests, up to 64 at once, and `note` its notes; an exception of these or of `log` ends the worker and
        is raised here. `started` gets the worker's process id; `loaded` is called when it has loaded its agent. No
        process is left on return, whatever happens.
        """
        conversation = _Conversation(
            process=self._process,
            reader=self._reader,
            writer=self._writer,
            answer=answer,
            note=note,
            loaded=loaded,
            log=log,
            linger=linger,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(conversation.collect)
            try:
                started(self._process.pid)
                with anyio.move_on_after(time_limit) as conversation.scope:
                    await conversation.hold(frame)
            finally:
                await conversation.end()
        return conversation.ended()

    async def prepare(self, frame: Frame, *, answer: Answer, time_limit: float) -> Ended | None:
        """Let the agent prepare its devbox, and pause; `run` with the worker's `turn` lets it begin.

        Returns None, or the end of a worker that ended instead, or whose time was over.
        """
        conversation = _Conversation(
            process=self._process,
            reader=self._reader,
            writer=self._writer,
            answer=answer,
            note=lambda _: None,
            loaded=lambda: None,
            log=lambda _: None,
            linger=LINGER_S,
            pauses=True,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(conversation.collect)
            try:
                with anyio.move_on_after(time_limit) as conversation.scope:
                    await conversation.hold((frame,))
            finally:
                if conversation.waiting is None:
                    await conversation.end()
                conversation.collecting.cancel()
        if conversation.waiting is None:
            return conversation.ended()
        self.turn = ({"id": conversation.waiting}, b"")
        return None

    async def end(self) -> None:
        """End a worker that is not needed. Bounded."""
        with anyio.CancelScope(shield=True):
            await self.run(log=lambda _: None, time_limit=0)


async def _start(
    python: Path, environment: Mapping[str, str]
) -> tuple[Process, asyncio.StreamReader, asyncio.StreamWriter]:
    """Start the process of a worker, with our end of its socket. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs, anyio.CancelScope(shield=True):  # asyncio forgets a process whose start is cancelled
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            process = await anyio.open_process(
                [str(python), str(Path(worker.__file__).parent)],
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            writer.transport.abort()
            raise
    return process, reader, writer


async def end_process(pid: int, its_birth: str) -> None:
    """Kill a worker of an earlier process of ours, with its session. Bounded."""
    if not its_birth or birth(pid) != its_birth:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with anyio.move_on_after(_END_TIMEOUT_S):
        while birth(pid) == its_birth:  # noqa: ASYNC110 - not a child of ours: nobody announces its end
            await anyio.sleep(0.05)


@dataclass(slots=True, kw_only=True)
class _Conversation:
    """One run of a worker: its frames and output, and the scope that ends it."""

    process: Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    answer: Answer
    note: Callable[[Header], None]
    loaded: Callable[[], None]
    log: Callable[[bytes], None]
    linger: float
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    collecting: anyio.CancelScope = field(default_factory=lambda: anyio.CancelScope(shield=True))
    collected: anyio.Event = field(default_factory=anyio.Event)
    received_all: anyio.Event = field(default_factory=anyio.Event)
    output: bytearray = field(default_factory=bytearray)
    free: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(_REQUESTS_AT_ONCE))
    asked: dict[str, anyio.CancelScope] = field(default_factory=dict)
    report: Header | None = None
    is_loaded: bool = False
    facts: Header = field(default_factory=dict)
    #: Hold ends when the agent has prepared its devbox; its request for a turn, by then.
    pauses: bool = False
    waiting: Any = None
    owes_report: bool = False
    failure: Exception | None = None
    is_broken: bool = False

    async def collect(self) -> None:
        """Pass on the worker's output until the last process that holds it has ended."""
        assert self.process.stdout is not None
        with self.collecting:
            try:
                async for chunk in self.process.stdout:
                    self.log(chunk)
                    self.output = (self.output + chunk)[-_TAIL_BYTES:]
            except Exception as error:  # noqa: BLE001 - raised again by `ended`
                self._fail(error)
        self.collected.set()

    async def hold(self, given: Sequence[Frame]) -> None:
        """Send the worker the frames, and answer its requests until it has ended."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen, tasks)
            self.owes_report = bool(given)
            for frame in given:
                await self._send(*frame)
            if not given:
                self.writer.write_eof()
            await self.process.wait()
            with anyio.move_on_after(_END_TIMEOUT_S):
                await self.received_all.wait()
            tasks.cancel_scope.cancel()

    async def _listen(self, tasks: TaskGroup) -> None:
        try:
            while True:
                sizes = worker.decode_sizes(await self.reader.readexactly(worker.SIZES_BYTES))
                header = worker.decode_header(await self.reader.readexactly(sizes[0]))
                body = await self.reader.readexactly(sizes[1])
                match header.get("op"):
                    case "result":
                        self.report = {**header, "status": int(header.get("status", 1))}
                        tasks.start_soon(self._linger)
                        break
                    case "loaded":
                        self.is_loaded = True
                        self.facts = header
                        self.loaded()
                    case "ready" if self.pauses:
                        self.waiting = header["id"]
                        tasks.cancel_scope.cancel()
                        break
                    case "note":
                        self.note(header)
                    case "cancel":
                        if (asked := self.asked.get(repr(header.get("number")))) is not None:
                            asked.cancel()
                    case _:
                        asked = self.asked[repr(header.get("id"))] = anyio.CancelScope()
                        tasks.start_soon(self._answer, header, body, asked)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it has ended, which is seen elsewhere
        except (ValueError, TypeError, RecursionError) as error:
            self._note(f"the agent's process sent what is not a frame: {error}\n")
            self.is_broken = True
            self.scope.cancel()
        self.received_all.set()

    async def _linger(self) -> None:
        await anyio.sleep(self.linger)
        self._note(f"the agent's process had not ended {self.linger:g} seconds after the agent, and was killed\n")
        self.scope.cancel()

    async def _answer(self, header: Header, body: bytes, asked: anyio.CancelScope) -> None:
        """Answer a request when it is its turn. Waiting is done here: the listener must get to the report."""
        number = header.get("id")

        async def send(piece: Header, body: bytes) -> None:
            await self._send({**piece, "id": number}, body)

        try:
            with asked:
                async with self.free:
                    reply, data = await self.answer(header, body, send)
                    await self._send({**reply, "id": number}, data)
        except ConnectionError:
            pass  # the worker has ended
        except Exception as error:  # noqa: BLE001 - raised again by `ended`
            self._fail(error)
        finally:
            self.asked.pop(repr(number), None)

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
            with anyio.move_on_after(_END_TIMEOUT_S):
                await self.process.wait()
            if self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            with anyio.move_on_after(_END_TIMEOUT_S):
                await self.process.wait()
                await self.collected.wait()
            self.collecting.cancel()
            with anyio.move_on_after(_END_TIMEOUT_S):
                await self.process.aclose()

    def ended(self) -> Ended:
        """The end of the worker. Raises the exception that ended it."""
        if self.failure is not None:
            raise self.failure
        status = self.process.returncode
        if self.is_broken:
            status = 1
        elif self.report is not None:
            status = int(self.report["status"]) & 0xFF
        elif self.scope.cancelled_caught:
            status = None
        elif status is None or (status == 0 and self.owes_report):
            self._note("the agent's process ended before the agent had returned\n")
            status = 1
        elif status < 0:
            status = 128 - status
        output = self.output.decode(errors="replace")
        return Ended(exit_status=status, report=self.report, output=output, is_loaded=self.is_loaded, facts=self.facts)
