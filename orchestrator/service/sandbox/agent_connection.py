"""The host's end of the exec agent's socket: orders out, answers in, and one `Process` for each command.

Its secret: the agent is not trusted. Whatever it sends that our own agent would not (bytes without an end, an id that
does not run, a second ending) ends the box and nothing else. A silent box costs nothing, for there is no task and no
thread here, only readiness callbacks. A command ends by the agent's word, never by the end of its pipes.

No other file but `boxagent` knows the bytes, and the two directions are not alike. Orders come from us and may be long
(a script, an environment), so they are length-prefixed fields. Answers come from a place where hostile programs run, so
they are lines of one alphabet, short, and matched whole: a line that does not match ends the box. JSON would need a
parser on the untrusted side of memory limits and 5 ms of start-up in every box; a line needs neither.
"""

import asyncio
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from orchestrator.service.errors import SandboxError
from orchestrator.service.sandbox.pipes import Drain, InputPipe, OutputPipe, Pipe, open_pipes
from orchestrator.service.sandbox.provider import BoxDied

#: No answer is longer; a box that sends more without a newline is not our agent.
MAX_LINE_BYTES = 64
#: Sockets that one message of the agent may bring; they come one by one.
MAX_SOCKETS = 4
#: The agent asks a command to end for a second and then kills it; a command that outlives this ends with its box.
KILL_TIMEOUT_S = 3.0
_ANSWER = re.compile(rb"(?P<verb>ready|exit|listening)(?: (?P<number>\d{1,15}) (?P<status>\d{1,3}))?")


class WireError(SandboxError):
    """The box sent something that our agent never sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The agent takes orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """Command `number` ended with `status` (0 to 255)."""

    number: int
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Order `number` opened a socket, which came with this answer; or it failed with an `errno` other than 0."""

    number: int
    errno: int


Answer = Ready | Exited | Listening


@dataclass(slots=True)
class AnswerParser:
    """Cuts the agent's bytes into answers; holds at most one unfinished line."""

    _rest: bytes = field(default=b"", init=False)

    def feed(self, data: bytes) -> list[Answer]:
        """Return the answers that are complete now. Raises WireError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise WireError(f"its agent sent {len(self._rest)} bytes without an end")
        answers: list[Answer] = []
        for line in lines:
            found = _ANSWER.fullmatch(line)
            if found is None or (found["verb"] == b"ready") != (found["number"] is None):
                raise WireError(f"its agent sent {line[:MAX_LINE_BYTES]!r}")
            if found["number"] is None:
                answers.append(Ready())
                continue
            number, status = int(found["number"]), int(found["status"])
            if found["verb"] == b"listening":
                answers.append(Listening(number=number, errno=status))
            elif status <= 255:
                answers.append(Exited(number=number, status=status))
            else:
                raise WireError(f"its agent sent the exit status {status}")
        return answers


def order_frame(verb: str, number: int, *fields: str) -> bytes:
    """Encode an order. Raises ValueError for a NUL inside a field."""
    if any("\0" in text for text in fields):
        raise ValueError("arguments, paths and environment cannot hold a NUL character")
    body = "\0".join((verb, str(number), *fields)).encode("utf-8", "surrogateescape")
    return len(body).to_bytes(4, "big") + body


def spawn_frame(number: int, folder: str, user: str, argv: Sequence[str], environment: Mapping[str, str]) -> bytes:
    """Encode the order to start a program. Raises ValueError for a NUL inside a field."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    return order_frame("spawn", number, folder, user, str(len(argv)), *argv, *variables)


class AgentProcess:
    """A command in a box; see `provider.Process`."""

    def __init__(self, connection: "AgentConnection", number: int, pipes: Sequence[Pipe]) -> None:
        *source, output, errors = pipes
        self._connection = connection
        self._number = number
        self._stdin = InputPipe(source[0].ours) if source else None
        self._stdout = OutputPipe(output.ours, connection.drain)
        self._stderr = OutputPipe(errors.ours, connection.drain)
        self._done = anyio.Event()
        self._status: int | None = None

    @property
    def stdin(self) -> InputPipe | None:
        return self._stdin

    @property
    def stdout(self) -> OutputPipe:
        return self._stdout

    @property
    def stderr(self) -> OutputPipe:
        return self._stderr

    async def wait(self) -> int:
        await self._done.wait()
        if self._status is None:
            raise BoxDied(self._connection.reason)
        return self._status

    async def interrupt(self) -> None:
        if not self._done.is_set():
            self._connection.order("interrupt", self._number)

    async def kill(self) -> None:
        if self._done.is_set():
            return
        self._connection.order("kill", self._number)
        await self._connection.moving.wait()  # what is frozen obeys when it is thawed
        with anyio.move_on_after(KILL_TIMEOUT_S):
            await self._done.wait()
        if not self._done.is_set():
            self._connection.break_off("a command in it could not be ended")
            await self._done.wait()

    def finish(self, status: int | None) -> None:
        """Note that the command has ended; without a status, its box has."""
        self._status = status
        if self._stdin is not None:
            self._stdin.finish()
        self._stdout.finish()
        self._stderr.finish()
        self._done.set()


class AgentConnection:
    """Owns the socket `sock`. `broken` is called once, with what the agent did, or None when it only hung up.

    `owner` is the host's user whose processes the commands are, None for ours.
    """

    def __init__(self, sock: socket.socket, broken: Callable[[str | None], None], *, owner: int | None = None) -> None:
        self.drain = Drain()
        self.ready = anyio.Event()
        self.reason = ""
        #: Unset while its box is frozen: nothing in that obeys an order then.
        self.moving = anyio.Event()
        self.moving.set()
        self._sock = sock
        self._broken = broken
        self._owner = owner
        self._parser = AnswerParser()
        self._running: dict[int, AgentProcess] = {}
        self._listening: dict[int, tuple[int, asyncio.Future[socket.socket]]] = {}
        self._received: deque[int] = deque()
        self._last = 0
        self._outgoing: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._open = True
        sock.settimeout(0)
        self._loop.add_reader(sock, self._receive)

    @property
    def running(self) -> int:
        """The number of commands that have been started and have not ended."""
        return len(self._running)

    def spawn(
        self, folder: str, argv: Sequence[str], environment: Mapping[str, str], *, user: str, stdin: bool
    ) -> AgentProcess:
        """Order the start of a program. Raises BoxDied, and OSError when no file descriptor is free."""
        if not self._open:
            raise BoxDied(self.reason)
        self._last += 1
        pipes = open_pipes(stdin=stdin, owner=self._owner)
        process = AgentProcess(self, self._last, pipes)
        theirs = tuple(pipe.theirs for pipe in pipes)
        try:
            frame = spawn_frame(self._last, folder, user, argv, environment)
        except ValueError as error:
            os.write(theirs[-1], f"{error}\n".encode())
            _close_all(theirs)
            process.finish(126)
            return process
        self._running[self._last] = process
        self._send(frame, theirs)
        return process

    async def listen(self, port: int) -> socket.socket:
        """Return a socket that listens at 127.0.0.1 in the box. Raises BoxDied, and OSError if it cannot."""
        if not self._open:
            raise BoxDied(self.reason)
        self._last += 1
        answer: asyncio.Future[socket.socket] = self._loop.create_future()
        self._listening[self._last] = port, answer
        self._send(order_frame("listen", self._last, str(port)), ())
        return await answer

    def order(self, verb: str, number: int) -> None:
        if self._open:
            self._send(order_frame(verb, number), ())

    def break_off(self, why: str | None) -> None:
        """Give the agent up; the box's owner ends the box and then calls `close`."""
        if self._open:
            self.reason = why or "its agent hung up"
            self.hang_up()
            self._broken(why)

    def hang_up(self) -> None:
        """Close the socket; the agent takes that for the end of its box."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            while self._outgoing:
                _close_all(self._outgoing.popleft()[1])
            _close_all(self._received)
            self._received.clear()

    def close(self, reason: str) -> None:
        """The box has ended: end everything that was in it."""
        self.reason = reason
        self.hang_up()
        self.drain.close()
        running, self._running = self._running, {}
        for process in running.values():
            process.finish(None)
        listening, self._listening = self._listening, {}
        for _, answer in listening.values():
            if not answer.done():
                answer.set_exception(BoxDied(reason))

    def _receive(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, 4096, MAX_SOCKETS)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        for fd in fds:
            os.set_inheritable(fd, False)  # noqa: FBT003
        self._received += fds
        if not data:
            self.break_off(None)
            return
        try:
            for answer in self._parser.feed(data):
                self._take(answer)
        except WireError as error:
            self.break_off(str(error))
        else:
            if len(self._received) > len(self._listening):
                self.break_off("its agent sent what nobody asked for")

    def _take(self, answer: Answer) -> None:
        match answer:
            case Ready():
                if self.ready.is_set():
                    raise WireError("its agent started twice")
                self.ready.set()
            case Exited(number=number):
                process = self._running.pop(number, None)
                if process is None:
                    raise WireError(f"its agent ended command {number}, which does not run")
                process.finish(answer.status)
            case Listening(number=number):
                if number not in self._listening or (answer.errno == 0 and not self._received):
                    raise WireError(f"its agent listens for order {number}, which did not ask for it")
                port, waiting = self._listening[number]
                listener = _listener(self._received.popleft(), port) if answer.errno == 0 else None
                del self._listening[number]
                if listener is None and not waiting.done():
                    waiting.set_exception(OSError(answer.errno, f"port {port}: {os.strerror(answer.errno)}"))
                elif listener is not None and not waiting.done():
                    waiting.set_result(listener)
                elif listener is not None:  # the caller was cancelled
                    listener.close()

    def _send(self, frame: bytes, fds: tuple[int, ...]) -> None:
        self._outgoing.append((memoryview(frame), fds))
        if len(self._outgoing) == 1:
            self._flush()
            if self._outgoing:
                self._loop.add_writer(self._sock, self._flush)

    def _flush(self) -> None:
        while self._outgoing:
            frame, fds = self._outgoing[0]
            try:
                sent = socket.send_fds(self._sock, [frame], fds) if fds else self._sock.send(frame)
            except BlockingIOError:
                return
            except OSError:
                self.break_off(None)
                return
            _close_all(fds)
            self._outgoing[0] = (frame[sent:], ())
            if sent == len(frame):
                self._outgoing.popleft()
        self._loop.remove_writer(self._sock)


def _listener(fd: int, port: int) -> socket.socket:
    """Check that `fd` is the socket that was asked for. Raises WireError if it is another, and closes it."""
    try:
        listener = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise WireError("its agent sent a file for a socket") from None
    listener.settimeout(0)
    is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_INET or not is_listening or listener.getsockname() != ("127.0.0.1", port):
        listener.close()
        raise WireError("its agent sent another socket than it was asked for")
    return listener


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
