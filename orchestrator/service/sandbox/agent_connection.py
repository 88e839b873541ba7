"""The host's end of the exec agent's socket: orders out, endings in, and one `Process` for each command.

Its secret: the agent is not trusted. Whatever it sends that our own agent would not (bytes without an end, an id that
does not run, a second ending) ends the box and nothing else; a box's silence costs nothing, for there is no task and no
thread here, only readiness callbacks. Commands end by the agent's word, never by the end of their pipes.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import anyio

from orchestrator.service.sandbox.agent_protocol import (
    Answer,
    Answers,
    Exited,
    Listening,
    Ready,
    WireError,
    order_frame,
    spawn_frame,
)
from orchestrator.service.sandbox.pipes import Drain, InputPipe, OutputPipe, Pipe, open_pipes
from orchestrator.service.sandbox.provider import BoxDied

#: Sockets that one look at what the agent sent may bring; they come one by one.
MAX_SOCKETS = 4
#: The agent asks politely for a second and then kills; what lives on after this many seconds ends with its box.
KILL_PATIENCE = 3.0


class AgentProcess:
    """A command in a box; see `contract.Process`."""

    def __init__(self, link: "Link", number: int, pipes: Sequence[Pipe]) -> None:
        *source, output, errors = pipes
        self._link = link
        self._number = number
        self._stdin = InputPipe(source[0].ours) if source else None
        self._stdout = OutputPipe(output.ours, link.drain)
        self._stderr = OutputPipe(errors.ours, link.drain)
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
            raise BoxDied(self._link.reason)
        return self._status

    async def interrupt(self) -> None:
        if not self._done.is_set():
            self._link.order("interrupt", self._number)

    async def kill(self) -> None:
        if self._done.is_set():
            return
        self._link.order("kill", self._number)
        with anyio.move_on_after(KILL_PATIENCE):
            await self._done.wait()
        if not self._done.is_set():
            self._link.break_off("a command in it could not be ended")
            await self._done.wait()

    def finish(self, status: int | None) -> None:
        """The command has ended; without a status, its box has."""
        self._status = status
        if self._stdin is not None:
            self._stdin.finish()
        self._stdout.finish()
        self._stderr.finish()
        self._done.set()


class Link:
    """Owns the socket `sock`. `broken` is called once, with what the agent did, or None when it only hung up.

    `owner` is the host's user whose processes the commands are, None for ours.
    """

    def __init__(self, sock: socket.socket, broken: Callable[[str | None], None], *, owner: int | None = None) -> None:
        self.drain = Drain()
        self.ready = anyio.Event()
        self.reason = ""
        self._sock = sock
        self._broken = broken
        self._owner = owner
        self._answers = Answers()
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
        """How many commands have been started and have not ended."""
        return len(self._running)

    def spawn(self, folder: str, argv: Sequence[str], environment: Mapping[str, str], *, stdin: bool) -> AgentProcess:
        """Start a program; the order is given when this returns. Raises BoxDied, and OSError for want of files."""
        if not self._open:
            raise BoxDied(self.reason)
        self._last += 1
        pipes = open_pipes(stdin=stdin, owner=self._owner)
        process = AgentProcess(self, self._last, pipes)
        theirs = tuple(pipe.theirs for pipe in pipes)
        try:
            frame = spawn_frame(self._last, folder, argv, environment)
        except ValueError as error:
            os.write(theirs[-1], f"{error}\n".encode())
            _close_all(theirs)
            process.finish(126)
            return process
        self._running[self._last] = process
        self._send(frame, theirs)
        return process

    async def listen(self, port: int) -> socket.socket:
        """A socket that listens at 127.0.0.1 in the box. Raises BoxDied, and OSError if it cannot."""
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
        """The box has ended: so has everything in it."""
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
            for answer in self._answers.feed(data):
                self._take(answer)
            self._check_received()
        except WireError as error:
            self.break_off(str(error))

    def _take(self, answer: Answer) -> None:
        match answer:
            case Ready():
                self._greet()
            case Exited():
                self._finish(answer.number, answer.status)
            case Listening():
                self._hand_over(answer.number, answer.errno)

    def _check_received(self) -> None:
        if len(self._received) > len(self._listening):
            raise WireError("its agent sent what nobody asked for")

    def _greet(self) -> None:
        if self.ready.is_set():
            raise WireError("its agent started twice")
        self.ready.set()

    def _finish(self, number: int, status: int) -> None:
        process = self._running.pop(number, None)
        if process is None:
            raise WireError(f"its agent ended command {number}, which does not run")
        process.finish(status)

    def _hand_over(self, number: int, errno: int) -> None:
        if number not in self._listening or (errno == 0 and not self._received):
            raise WireError(f"its agent listens for order {number}, which did not ask for it")
        port, answer = self._listening[number]
        listener = _listener(self._received.popleft(), port) if errno == 0 else None
        del self._listening[number]
        if not answer.done() and listener is not None:
            answer.set_result(listener)
        elif not answer.done():
            answer.set_exception(OSError(errno, f"port {port}: {os.strerror(errno)}"))
        elif listener is not None:  # nobody waits any more
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
    """The socket that was asked for. Raises WireError if it is another, and closes it."""
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
