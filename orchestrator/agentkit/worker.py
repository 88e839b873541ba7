"""Runs one Python agent in a process of its own, in the user's interpreter.

This file is run by path, so it uses the standard library only and stays within Python 3.8. It is two processes. The
first supervises: it adopts whatever the agent's descendants leave behind, and ends the whole tree when the agent is
done or when the other end of the socket is closed, which is also what happens when the sweep itself is killed. The
second, forked from it, loads the agent and runs it.

A process namespace (bubblewrap) would end the tree with a kernel's certainty. But it needs a machine that permits it,
so this way would be needed as well; and for an ordinary user it brings a user namespace along, in which the files of
root belong to nobody and no program gains rights. An agent has to find the machine it was written on.

The socket is standard input: nothing writes there by accident. Both ends speak frames: a header and a body of bytes.
"""
# ruff: noqa: PTH109, PTH119, PTH120, PTH123  # importing pathlib would take longer than all this file does

from __future__ import annotations

import builtins
import contextlib
import ctypes
import faulthandler
import importlib
import importlib.util
import inspect
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future
    from types import FrameType, ModuleType
    from typing import Any

    Header = dict[str, Any]

#: Bytes; a longer header or body is a mistake of the program at the other end.
MAX_HEADER = 64 << 20
MAX_BODY = 256 << 20
#: How an agent is run: the first of these that it has.
ENTRY_POINTS = ("run", "solve", "__call__")
#: What an agent may ask for by the name of a parameter.
OFFERED = ("prompt", "workspace", "scenario", "model", "settings", "log", "devbox_id")

_SIZES = struct.Struct("!II")
#: Bytes at the start of a frame that say how long the rest is.
FRAME_START = _SIZES.size

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def encode_frame(header: Header, body: bytes = b"") -> bytes:
    """One frame; raises ValueError if it is too large."""
    data = json.dumps(header).encode()
    check_sizes(len(data), len(body))
    return _SIZES.pack(len(data), len(body)) + data + body


def decode_sizes(data: bytes) -> tuple[int, int]:
    """The lengths of header and body that the start of a frame announces; raises ValueError."""
    header, body = _SIZES.unpack(data)
    check_sizes(header, body)
    return header, body


def check_sizes(header: int, body: int) -> None:
    if header > MAX_HEADER or body > MAX_BODY:
        raise ValueError(f"too large: at most {MAX_BODY >> 20} MiB can pass at once")


def decode_header(data: bytes) -> Header:
    """The header of a frame; raises ValueError."""
    header = json.loads(data)
    if not isinstance(header, dict):
        raise ValueError("the header of a frame is an object")  # noqa: TRY004 - wrong bytes, not a wrong call
    return header


def main() -> None:
    _leave_own_folder()
    control = os.dup(0)  # not inherited by what the agent starts
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    supervisor = os.getpid()
    child = os.fork()
    if child != 0:
        os._exit(_supervise(child, control))
    os.setpgid(0, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(128 + signal.SIGKILL)
    sys.exit(_work(Channel(socket.socket(fileno=control))))


def _leave_own_folder() -> None:
    """The folder of this file is not the agent's: its modules have names like `python` and `command`."""
    if sys.path and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
        del sys.path[0]


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _supervise(child: int, control: int) -> int:
    """Wait until the agent has ended or nobody listens any more; leave no process behind; return the exit status."""
    awake, wake = os.pipe()
    for fd in (awake, wake):
        os.set_blocking(fd, False)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ignore)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    poller = select.poll()
    poller.register(control, 0)  # asks for the hang-up only: what is sent here is for the agent
    poller.register(awake, select.POLLIN)
    ended = _reap()
    while child not in ended:
        ready = {fd for fd, _ in poller.poll()}
        if control in ready:
            ended[child] = 128 + signal.SIGKILL
        else:
            with contextlib.suppress(BlockingIOError):
                os.read(awake, 4096)
            ended.update(_reap())
    _end_all(child)
    return ended[child]


def _ignore(number: int, frame: FrameType | None) -> None:
    """A signal to wake up for, and no more: the one who decides is at the other end of the socket."""


def _reap() -> dict[int, int]:
    """The exit statuses of the children that have ended; raises ChildProcessError when none is left."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            if ended:
                return ended
            raise
        if pid == 0:
            return ended
        ended[pid] = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _end_all(child: int) -> None:
    """Kill every descendant. Those of a killed process become ours, so killing our own children until none is left
    gets them all, however they detached themselves.
    """
    pause = 0.0005
    while True:
        _kill(os.killpg, child)
        for pid in _children():
            _kill(os.kill, pid)
        try:
            _reap()
        except ChildProcessError:
            return
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def _kill(send: Callable[[int, int], None], pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(pid, signal.SIGKILL)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


class Channel:
    """Frames over a blocking socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()

    def send(self, header: Header, body: bytes = b"") -> None:
        frame = encode_frame(header, body)
        with self._sending:
            self._socket.sendall(frame)

    def receive(self) -> tuple[Header, bytes]:
        """Raises EOFError when the other end is gone."""
        header, body = decode_sizes(self._exactly(FRAME_START))
        return decode_header(self._exactly(header)), self._exactly(body)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._socket.recv(min(size - len(data), 1 << 20))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)


class WorkspaceError(RuntimeError):
    """What was asked of the devbox was refused; the message says why."""


class ExecResult:
    """How a command in the devbox ended; `exit_status` is 128 + n after signal n, None when it ran out of time."""

    def __init__(self, exit_status: int | None, stdout: str, stderr: str) -> None:
        self.exit_status = exit_status
        self.stdout = stdout
        self.stderr = stderr

    def __repr__(self) -> str:
        return f"ExecResult(exit_status={self.exit_status!r}, stdout={self.stdout!r}, stderr={self.stderr!r})"


class Scenario:
    """Which scenario this is."""

    def __init__(self, scenario_id: str, name: str) -> None:
        self.id = scenario_id
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Scenario(id={self.id!r}, name={self.name!r})"


class Workspace:
    """The devbox, as an agent uses it: from any thread, several calls at once if it likes.

    Paths are absolute in the devbox, or relative to its working directory. Each method has a twin for asynchronous
    code, `aexec`, `aread`, `awrite`. They raise WorkspaceError, FileNotFoundError and other kinds of OSError.
    """

    def __init__(self, channel: Channel, working_directory: str) -> None:
        self.working_directory = working_directory
        self._channel = channel
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[tuple[Header, bytes]]] = {}
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
        return _exec_result(self._ask(_exec_request(command, timeout, environment, cwd)).result())

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
        return _exec_result(await self._ask_async(_exec_request(command, timeout, environment, cwd)))

    async def aread(self, path: str) -> bytes:
        return (await self._ask_async({"op": "read", "path": os.fspath(path)}))[1]

    async def awrite(self, path: str, data: bytes | str) -> None:
        await self._ask_async({"op": "write", "path": os.fspath(path)}, _as_bytes(data))

    async def _ask_async(self, header: Header, body: bytes = b"") -> tuple[Header, bytes]:
        import asyncio  # slow to import, and most agents do without

        return await asyncio.wrap_future(self._ask(header, body))

    def _ask(self, header: Header, body: bytes = b"") -> Future[tuple[Header, bytes]]:
        from concurrent.futures import Future  # brings logging along, and not every agent gets here

        if os.getpid() != self._process:
            raise WorkspaceError("the workspace works in the agent's own process, not in one forked from it")
        answer: Future[tuple[Header, bytes]] = Future()
        with self._lock:
            if self._asked == 0:
                threading.Thread(target=self._receive, name="sweep-workspace", daemon=True).start()
            self._asked += 1
            number = self._asked
            self._waiting[number] = answer
        try:
            self._channel.send({**header, "id": number}, body)
        except BaseException:
            del self._waiting[number]
            raise
        return answer

    def _receive(self) -> None:
        """Hand each answer to the one who waits for it."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                header, body = self._channel.receive()
                answer = self._waiting.pop(header["id"])
                if answer.cancelled() or not answer.set_running_or_notify_cancel():
                    continue
                if "error" in header:
                    answer.set_exception(_as_error(header["error"], header["message"]))
                else:
                    answer.set_result((header, body))


def _exec_request(command: str, timeout: float, environment: Mapping[str, str] | None, cwd: str | None) -> Header:
    if not isinstance(command, str):
        raise TypeError(f"command is a string for the shell, not {type(command).__name__}")
    variables = {str(name): str(value) for name, value in (environment or {}).items()}
    return {"op": "exec", "command": command, "timeout": float(timeout), "environment": variables, "cwd": cwd}


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


class Log:
    """`log(...)` writes a line to the attempt's agent.log, as `print` does."""

    def __call__(self, *values: object) -> None:
        print(*values, flush=True)  # noqa: T201


class Refused(Exception):
    """The reference does not lead to an agent that can be run; the message says why."""


def _work(channel: Channel) -> int:
    """Do the one job this process was started for, report, and return the exit status."""
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    job, prompt = channel.receive()
    report: Header = {"op": "result", "usage": {}}
    status = 0
    try:
        entry = _load(job)
        if job["op"] == "check":
            _check(entry, job["entry"])
        else:
            report["usage"] = _usage(_run(entry, _offers(job, prompt, channel)))
    except Refused as refusal:
        report["refused"] = str(refusal)
        status = _failed(str(refusal))
    except SystemExit as end:
        status = _exit_status(end.code)
    except BaseException as error:  # noqa: BLE001 - whatever the agent raises is its outcome
        _print_traceback(error)
        status = 1
    _flush()
    channel.send({**report, "status": status})
    return status


def _failed(message: str) -> int:
    print(message, file=sys.stderr)  # noqa: T201
    return 1


def _exit_status(code: object) -> int:
    """The meaning of what `sys.exit` was given."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else _failed(str(code))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _print_traceback(error: BaseException) -> None:
    """As Python prints it, without the frames of this file and of the import system above the agent's own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, importlib.__file__):
        trace = trace.tb_next
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith("<frozen importlib"):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


def _load(job: Header) -> Any:
    """The class, function or object that the job names."""
    module = _load_file(job["file"]) if job["file"] is not None else _load_module(job["module"])
    entry: Any = module
    for part in job["entry"].split("."):
        if not hasattr(entry, part):
            raise Refused(f"{_name(job)} has no {part!r}{_hint(part, entry)}")
        entry = getattr(entry, part)
    return entry


def _name(job: Header) -> str:
    return str(job["file"] or f"module {job['module']}")


def _load_file(path: str) -> ModuleType:
    """Load a file as `python FILE` would, under a name nothing else imports."""
    sys.argv = [path]
    sys.path.insert(0, os.path.dirname(path))
    name = "_sweep_agent_" + "".join(c if c.isalnum() else "_" for c in os.path.basename(path)[:-3])
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Refused(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    """Import a module as `python -m` would, which sees the current folder."""
    sys.argv = [name]
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise Refused(f"there is no module {error.name!r} for {sys.executable} in {os.getcwd()}") from None
        raise


def _hint(name: str, owner: object) -> str:
    """Names near to one that is not there, else the names of everything that could have been meant."""
    import difflib  # only to explain a mistake

    mine = getattr(owner, "__name__", None)
    candidates = [
        key
        for key, value in getattr(owner, "__dict__", {}).items()
        if callable(value) and getattr(value, "__module__", mine) == mine
    ]
    near = (
        difflib.get_close_matches(name, candidates, n=3) or [key for key in candidates if not key.startswith("_")][:5]
    )
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _check(entry: Any, name: str) -> None:
    """See whether `_run` will be able to call it, without doing so. Raises Refused."""
    if inspect.isclass(entry):
        _choose(entry, dict.fromkeys(OFFERED, ""), name)
        method = _method_of_class(entry)
        if method is None and _find(entry, "__getattr__") is None:
            raise Refused(f"class {name} has no method to run: none of {', '.join(ENTRY_POINTS)}")
    elif inspect.isroutine(entry):
        _choose(entry, dict.fromkeys(OFFERED, ""), name)
    elif not callable(entry) and not any(callable(getattr(entry, method, None)) for method in ENTRY_POINTS):
        raise Refused(f"{name} is neither a class nor a function, and has none of {', '.join(ENTRY_POINTS)}")


def _method_of_class(entry: type) -> Any:
    return next((found for found in (_find(entry, method) for method in ENTRY_POINTS) if callable(found)), None)


def _find(entry: type, name: str) -> Any:
    """What the class itself or a base defines; `getattr` would find `type.__call__`, which every class has."""
    return next((base.__dict__[name] for base in entry.__mro__ if name in base.__dict__), None)


def _offers(job: Header, prompt: bytes, channel: Channel) -> Header:
    return {
        "prompt": prompt.decode(errors="surrogateescape"),
        "workspace": Workspace(channel, job["working_directory"]),
        "scenario": Scenario(job["scenario_id"], job["scenario_name"]),
        "model": job["model"],
        "settings": job["settings"],
        "log": Log(),
        "devbox_id": job["devbox_id"],
    }


def _run(entry: Any, offers: Header) -> Any:
    """Call the agent; an asynchronous one is built and run inside one event loop."""
    method = _method_of_class(entry) if inspect.isclass(entry) else entry
    if inspect.iscoroutinefunction(method) or inspect.iscoroutinefunction(getattr(method, "__call__", None)):  # noqa: B004
        return _in_loop(lambda: _call(entry, offers))
    value = _call(entry, offers)
    return _in_loop(lambda: value) if inspect.isawaitable(value) else value


def _in_loop(make: Callable[[], Any]) -> Any:
    import asyncio  # slow to import, and most agents do without

    async def inside() -> Any:
        value = make()
        return await value if inspect.isawaitable(value) else value

    return asyncio.run(inside())


def _call(entry: Any, offers: Header) -> Any:
    """Build a class and call its first entry point; call a function."""
    name = getattr(entry, "__qualname__", type(entry).__name__)
    if inspect.isroutine(entry):
        return entry(**_choose(entry, offers, name))
    agent = entry
    if inspect.isclass(entry):
        agent = entry(**_choose(entry, offers, name))
    for method in ENTRY_POINTS:
        if callable(getattr(agent, method, None)):
            function = getattr(agent, method)
            return function(**_choose(function, offers, f"{name}.{method}", is_method=inspect.isclass(entry)))
    raise Refused(f"{name} has no method to run: none of {', '.join(ENTRY_POINTS)}")


def _choose(function: Any, offers: Header, name: str, *, is_method: bool = False) -> Header:
    """The arguments that a callable asks for by name. What we have no value for leaves a default as it is."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C
        return {} if is_method else {"prompt": offers["prompt"]}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    chosen = {
        p.name: offers[p.name]
        for p in named
        if p.name in offers and (p.default is p.empty or offers[p.name] not in (None, {}))
    }
    lacking = [
        p.name
        for p in parameters
        if p.default is p.empty and p.name not in chosen and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if lacking:
        raise Refused(f"{name} asks for {', '.join(lacking)}; what it can ask for by name is {', '.join(OFFERED)}")
    if not is_method and "prompt" not in chosen and any(p.kind is p.VAR_KEYWORD for p in parameters):
        chosen["prompt"] = offers["prompt"]
    return chosen


def _usage(value: Any) -> dict[str, float]:
    """The numbers an agent returned as `usage`; anything else it returned is its own affair."""
    usage = value.get("usage") if isinstance(value, dict) else None
    if not isinstance(usage, dict):
        return {}
    return {
        str(key): number
        for key, number in usage.items()
        if isinstance(number, (int, float)) and not isinstance(number, bool)
    }


if __name__ == "__main__":
    main()
