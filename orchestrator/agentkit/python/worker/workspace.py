"""The devbox, as a Python agent uses it: every call is a question to the sweep, which has the endpoint and the key."""

from __future__ import annotations

import builtins
import contextlib
import os
import threading
from collections import deque

from .standard import standard_library
from .transfers import ExecResult, Transfers, WorkspaceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from concurrent.futures import Future
    from typing import Any

    from .frames import Channel, Header
    from .transfers import Local


class Workspace(Transfers):
    """The devbox, as an agent uses it: from any thread, several calls at once if it likes.

    Paths are absolute in the devbox, or relative to its working directory. Each method has a twin for asynchronous
    code: `aexec`, `aread`, `awrite`, `aupload`, `adownload`; `stream` serves both. They raise WorkspaceError,
    FileNotFoundError and other kinds of OSError. `environment` is a dictionary that may be changed: every command gets
    it, besides what the call itself says.
    """

    def __init__(self, channel: Channel, *, working_directory: str, scratch: str) -> None:
        self.working_directory = working_directory
        self.scratch = scratch
        self.environment: dict[str, str] = {}
        self._channel = channel
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[tuple[Header, bytes]]] = {}
        self._streams: dict[int, Stream] = {}
        self._pieces: dict[int, bytearray] = {}
        self._asked = 0

    def exec(
        self,
        command: str,
        *,
        timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> ExecResult:
        """Run a shell command to its end, or kill it with all it started after `timeout` seconds."""
        return _exec_result(self._ask(self._exec_request(command, timeout, environment, cwd)).result())

    def stream(
        self,
        command: str,
        *,
        timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Stream:
        """Run a shell command and get what it prints, on both of its streams, line by line while it runs.

        For `for` and for `async for`; `exit_status` is there when the lines are over. A command whose lines nobody
        wants any more, because the loop was left, is killed.
        """
        request = self._exec_request("exec 2>&1\n" + command, timeout, environment, cwd)
        return Stream(self, {**request, "stream": True})

    def read(self, path: str) -> bytes:
        """The content of a file."""
        return self._ask({"op": "read", "path": os.fspath(path)}).result()[1]

    def write(self, path: str, data: bytes | str) -> None:
        """Write a file, with its missing folders; text is written as UTF-8."""
        self._ask({"op": "write", "path": os.fspath(path)}, _as_bytes(data)).result()

    async def aexec(
        self,
        command: str,
        *,
        timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> ExecResult:
        return _exec_result(await self._ask_async(self._exec_request(command, timeout, environment, cwd)))

    async def aread(self, path: str) -> bytes:
        return (await self._ask_async({"op": "read", "path": os.fspath(path)}))[1]

    async def awrite(self, path: str, data: bytes | str) -> None:
        await self._ask_async({"op": "write", "path": os.fspath(path)}, _as_bytes(data))

    async def aupload(self, local: Local, path: str) -> None:
        await _in_thread(self.upload, local, path)

    async def adownload(self, path: str, local: Local) -> None:
        await _in_thread(self.download, path, local)

    def _exec_request(
        self, command: str, timeout: float, environment: Mapping[str, str] | None, cwd: str | None
    ) -> Header:
        if not isinstance(command, str):
            raise TypeError(f"command is a string for the shell, not {type(command).__name__}")
        variables = {str(name): str(value) for name, value in {**self.environment, **(environment or {})}.items()}
        return {"op": "exec", "command": command, "timeout": float(timeout), "environment": variables, "cwd": cwd}

    async def _ask_async(self, header: Header, body: bytes = b"") -> tuple[Header, bytes]:
        import asyncio  # slow to import, and most agents do without

        return await asyncio.wrap_future(self._ask(header, body))

    def _ask(self, header: Header, body: bytes = b"", stream: Stream | None = None) -> Future[tuple[Header, bytes]]:
        """Send a question. What it started in the devbox ends if the answer is cancelled."""
        with standard_library():
            from concurrent.futures import Future  # brings logging along, and not every agent gets here

        answer: Future[tuple[Header, bytes]] = Future()
        with self._lock:
            if self._asked == 0:
                threading.Thread(target=self._receive, name="sweep-workspace", daemon=True).start()
            self._asked += 1
            number = self._asked
            self._waiting[number] = answer
            if stream is not None:
                self._streams[number] = stream
        try:
            self._channel.send({**header, "id": number}, body)
        except BaseException:
            self._forget(number)
            raise
        answer.add_done_callback(lambda done: self._cancel(number) if done.cancelled() else None)
        return answer

    def _cancel(self, number: int) -> None:
        self._forget(number)
        with contextlib.suppress(OSError):
            self._channel.send({"op": "cancel", "number": number})

    def _forget(self, number: int) -> None:
        self._waiting.pop(number, None)
        self._streams.pop(number, None)
        self._pieces.pop(number, None)

    def _receive(self) -> None:
        """Hand each answer, and each piece of output, to the one who waits for it."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                header, body = self._channel.receive()
                number = header["id"]
                if "output" in header:
                    stream = self._streams.get(number)
                    if stream is not None:
                        stream.put(header["output"])
                    continue
                answer = self._waiting.get(number)
                if "piece" in header:
                    if answer is not None:
                        self._pieces.setdefault(number, bytearray()).extend(body)
                    continue
                body = bytes(self._pieces.pop(number, b"")) + body
                self._forget(number)
                if answer is None or not answer.set_running_or_notify_cancel():
                    continue
                if "error" in header:
                    answer.set_exception(_as_error(header["error"], header["message"]))
                else:
                    answer.set_result((header, body))


class Stream:
    """The lines that a command prints, without their ends; started when it is looped over, which works once."""

    def __init__(self, workspace: Workspace, request: Header) -> None:
        #: 128 + n after signal n; None while it runs, and when it ran out of time.
        self.exit_status: int | None = None
        self._workspace = workspace
        self._request = request
        self._answer: Future[tuple[Header, bytes]] | None = None
        self._lock = threading.Lock()
        self._pieces: deque[str | None] = deque()
        self._wanted: Future[None] | None = None
        self._rest = ""
        self._is_over = False

    def __iter__(self) -> Iterator[str]:
        try:
            while not self._is_over:
                self._more().result()
                while self._pieces:
                    yield from self._lines(self._pieces.popleft())
        finally:
            self._stop()

    async def __aiter__(self) -> AsyncIterator[str]:
        import asyncio

        try:
            while not self._is_over:
                await asyncio.wrap_future(self._more())
                while self._pieces:
                    for line in self._lines(self._pieces.popleft()):
                        yield line
        finally:
            self._stop()

    def put(self, piece: str | None) -> None:
        """A piece of output, None for its end."""
        with self._lock:
            self._pieces.append(piece)
            wanted, self._wanted = self._wanted, None
        if wanted is not None and wanted.set_running_or_notify_cancel():
            wanted.set_result(None)

    def _more(self) -> Future[None]:
        """Done as soon as there are pieces; starts the command the first time."""
        with standard_library():
            from concurrent.futures import Future

        if self._answer is None:
            self._answer = self._workspace._ask(self._request, stream=self)  # noqa: SLF001
            self._answer.add_done_callback(lambda _: self.put(None))
        wanted: Future[None] = Future()
        with self._lock:
            if self._pieces:
                wanted.set_result(None)
            else:
                self._wanted = wanted
        return wanted

    def _lines(self, piece: str | None) -> list[str]:
        """The lines that a piece makes whole; at the end what is left, and the exit status or what went wrong."""
        if piece is None:
            assert self._answer is not None
            self._is_over = True
            self.exit_status = self._answer.result()[0]["exit_status"]
            return [self._rest] if self._rest else []
        *lines, self._rest = (self._rest + piece).split("\n")
        return lines

    def _stop(self) -> None:
        self._is_over = True
        if self._answer is not None and not self._answer.done():
            self._answer.cancel()


async def _in_thread(call: Any, *arguments: Any) -> None:
    import asyncio

    await asyncio.get_running_loop().run_in_executor(None, call, *arguments)


def _exec_result(answer: tuple[Header, bytes]) -> ExecResult:
    header = answer[0]
    return ExecResult(header["exit_status"], header["stdout"], header["stderr"])


def _as_bytes(data: bytes | str) -> bytes:
    return data.encode(errors="surrogateescape") if isinstance(data, str) else bytes(data)


def _as_error(kind: str, message: str) -> Exception:
    known = getattr(builtins, kind, None)
    if isinstance(known, type) and issubclass(known, (OSError, ValueError)):
        return known(message)
    return WorkspaceError(message)
