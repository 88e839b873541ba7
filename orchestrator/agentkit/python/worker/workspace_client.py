"""The workspace of a Python agent: every call is a request to the sweep, which has the endpoint and the key."""

from __future__ import annotations

import builtins
import contextlib
import os
import threading
from collections import deque

from . import standard_library
from .transfers import CommandResult, Transfers, WorkspaceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from concurrent.futures import Future
    from typing import Any

    from . import Channel, Header
    from .transfers import Local

    Reply = Future[tuple[Header, bytes]]


class WorkspaceClient(Transfers):
    """An agent's workspace: the devbox, from any thread, with any number of calls at once.

    Paths are absolute in the devbox, or relative to its working directory. Each method has a twin for asynchronous
    code: `aexec`, `aread`, `awrite`, `aupload`, `adownload`; `stream` serves both. They raise WorkspaceError,
    FileNotFoundError and other kinds of OSError. `environment` is a dictionary that may be changed: every command gets
    its variables, below those of the call itself.
    """

    def __init__(self, channel: Channel, *, working_directory: str, scratch: str) -> None:
        self.working_directory = working_directory
        self.scratch = scratch
        self.environment: dict[str, str] = {}
        self._channel = channel
        self._lock = threading.Lock()
        self._waiting: dict[int, Reply] = {}
        self._streams: dict[int, OutputLines] = {}
        self._pieces: dict[int, bytearray] = {}
        self._asked = 0

    def exec(
        self,
        command: str,
        *,
        timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> CommandResult:
        """Run a shell command to its end, or kill it with all it started after `timeout` seconds."""
        return _exec_result(self._ask(self._exec_request(command, timeout, environment, cwd)).result())

    def stream(
        self,
        command: str,
        *,
        timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> OutputLines:
        """Run a shell command and get its output, of both streams, line by line while it runs.

        For `for` and for `async for`; `exit_status` is set when the lines are over. Leaving the loop kills the command.
        """
        request = self._exec_request("exec 2>&1\n" + command, timeout, environment, cwd)
        return OutputLines(self, {**request, "stream": True})

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
    ) -> CommandResult:
        return _exec_result(await self._ask_async(self._exec_request(command, timeout, environment, cwd)))

    async def aread(self, path: str) -> bytes:
        return (await self._ask_async({"op": "read", "path": os.fspath(path)}))[1]

    async def awrite(self, path: str, data: bytes | str) -> None:
        await self._ask_async({"op": "write", "path": os.fspath(path)}, _as_bytes(data))

    async def aupload(self, local: Local, path: str) -> None:
        await _in_thread(self.upload, local, path)

    async def adownload(self, path: str, local: Local) -> None:
        await _in_thread(self.download, path, local)

    async def wait_turn(self) -> None:
        """Say that the devbox is prepared, and wait until the agent may begin."""
        await self._ask_async({"op": "ready"})

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

    def _ask(self, header: Header, body: bytes = b"", stream: OutputLines | None = None) -> Reply:
        """Send a request. A command that it started in the devbox ends if the answer is cancelled."""
        with standard_library():
            from concurrent.futures import Future  # brings logging along, and not every agent gets here

        answer: Reply = Future()
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

        def cancel(done: Reply) -> None:
            if done.cancelled():
                self._forget(number)
                with contextlib.suppress(OSError):
                    self._channel.send({"op": "cancel", "number": number})

        answer.add_done_callback(cancel)
        return answer

    def _forget(self, number: int) -> None:
        self._waiting.pop(number, None)
        self._streams.pop(number, None)
        self._pieces.pop(number, None)

    def _receive(self) -> None:
        """Hand each answer, and each piece of output, to the call that waits for it."""
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
                    answer.set_exception(_error(header["error"], header["message"]))
                else:
                    answer.set_result((header, body))


class OutputLines:
    """The lines that a command prints, without their ends. Iterating starts the command; it works once."""

    def __init__(self, workspace: WorkspaceClient, request: Header) -> None:
        #: 128 + n after signal n; None while it runs, and when it ran out of time.
        self.exit_status: int | None = None
        self._workspace = workspace
        self._request = request
        self._answer: Reply | None = None
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
        """Add a piece of output; None marks its end."""
        with self._lock:
            self._pieces.append(piece)
            wanted, self._wanted = self._wanted, None
        if wanted is not None and wanted.set_running_or_notify_cancel():
            wanted.set_result(None)

    def _more(self) -> Future[None]:
        """A future that is done as soon as there are pieces; the first call starts the command."""
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
        """The lines that a piece completes. At the end: the last line; sets `exit_status`, or raises the error."""
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


def _error(name: str, message: str) -> Exception:
    """The error of an answer: Python's own where it has one of that name for files and values."""
    known = getattr(builtins, name, None)
    if not (isinstance(known, type) and issubclass(known, (OSError, ValueError))):
        return WorkspaceError(message)
    try:
        return known(message)
    except TypeError:  # such as UnicodeEncodeError, which is made of more than a message
        return ValueError(message)


def _exec_result(answer: tuple[Header, bytes]) -> CommandResult:
    header = answer[0]
    return CommandResult(header["exit_status"], header["stdout"], header["stderr"])


def _as_bytes(data: bytes | str) -> bytes:
    return data.encode(errors="surrogateescape") if isinstance(data, str) else bytes(data)
