"""Python agents: a class or function of the user's, run in a worker process per attempt.

In a process of its own, because it may block, crash, leak or need packages that disagree with ours; with the user's
interpreter, because that has those packages. The code and its interpreter are found without running any of that code.
The agent reaches the devbox through us: the requests to its workspace come here, and go to the `Workspace` that the
attempt was given.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import anyio
from msgspec import to_builtins

from orchestrator.agentkit.agent import Outputs, Result, Task, Where, Workspace, known_reason, known_usage
from orchestrator.agentkit.file.command import as_bytes, tail
from orchestrator.agentkit.python.worker import check_sizes
from orchestrator.agentkit.worker_process import Frame, Header, Send, Worker
from orchestrator.core.errors import AgentSetupFailed, Refused, Unauthorized, UsageError, WorldError, leaf
from orchestrator.core.protocol import AdditionalContext

#: The longest life of a devbox.
MAX_TIMEOUT_S: Final = 48 * 3600.0
#: Workers that have loaded the agent and wait for the next attempts.
SPARES: Final = 2
#: For importing the agent once: some import a machine-learning framework.
CHECK_TIMEOUT_S: Final = 120.0
#: For an interpreter to start and to look for a module.
LOOKUP_TIMEOUT_S: Final = 30.0
#: What a scenario may give, by the name of an agent's parameter for it.
UNMET: Final = {"mcp_servers": "MCP servers", "skills_dir": "skills", "trajectory": "a trajectory to start from"}
#: Looks where an agent's imports are found: not in the current folder.
_HAS_MODULE: Final = """
import sys
del sys.path[0]
from importlib.util import find_spec
sys.exit(find_spec(sys.argv[1]) is None)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A class or function: `entry` of a file (an absolute path) or of a module."""

    entry: str
    file: Path | None = None
    module: str | None = None

    def as_header(self) -> Mapping[str, Any]:
        """The first frame of a worker."""
        file = None if self.file is None else str(self.file)
        return {"op": "load", "file": file, "module": self.module, "entry": self.entry}


def find_interpreter(python: Path | None, environ: Mapping[str, str]) -> Path:
    """Find the user's interpreter: `python` if given, else the active virtual environment's, else ours.

    A name without a folder is looked up on PATH. Raises UsageError if `python` is not there.
    """
    if python is not None:
        found = shutil.which(python, path=environ.get("PATH"))
        if found is None:
            raise UsageError(f"--python {python}: there is no such program; give the path of a Python interpreter")
        return Path(found).absolute()
    active = environ.get("VIRTUAL_ENV")
    if active and os.access(mine := Path(active) / "bin" / "python", os.X_OK):
        return mine.absolute()
    return Path(sys.executable)


def has_module(python: Path, module: str, environ: Mapping[str, str]) -> bool:
    """Ask an interpreter if it finds a module, without importing it. False if it cannot be started."""
    command = (python, "-c", _HAS_MODULE, module)
    try:
        found = subprocess.run(command, env=environ, capture_output=True, timeout=LOOKUP_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0


def digest_of(target: Target, python: Path, environ: Mapping[str, str]) -> str:
    """The digest of the agent's own file, and of its name; of the name alone for a module that cannot be found.

    Modules are looked up without importing them: in the current folder, PYTHONPATH and the interpreter's packages.
    """
    file = target.file
    if target.module is not None:
        folders = [Path.cwd(), *(Path(entry) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry)]
        for packages in sorted(python.parent.parent.glob("lib/python3*/site-packages")):
            folders.append(packages)
            for editable in sorted(packages.glob("*.pth")):
                lines = editable.read_text(encoding="utf-8", errors="replace").splitlines()
                folders.extend(Path(line) for line in lines if line.startswith("/"))
        path = Path(*target.module.split("."))
        candidates = (folder / name for folder in folders for name in (path.with_suffix(".py"), path / "__init__.py"))
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
    name = f"{target.module or ''}:{target.entry}"
    content = b"" if file is None else file.read_bytes()
    return hashlib.sha256(name.encode() + b"\0" + content).hexdigest()


@dataclass(slots=True)
class _ReadyWorkers:
    """The workers that have loaded an agent, kept between its attempts, and the result of its check.

    Each worker serves one attempt. Forking them from one that has loaded the agent would be quicker, but an imported
    module may have started threads, seeded its dice or opened connections, and none of these survives a fork.
    """

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    is_checked: bool = False
    #: What the agent says of itself; see `worker_process.Ended`.
    facts: Header = field(default_factory=dict)
    #: The workers that have prepared a devbox and wait for their turn, by the devbox.
    prepared: dict[str, Worker] = field(default_factory=dict)
    spares: deque[Worker] = field(default_factory=deque)
    attempts: int = 0
    is_closed: bool = False

    async def take(self) -> Worker | None:
        """Return a worker that is ready, or nearly; None for the first attempt, which never finds one."""
        self.attempts += 1
        while self.spares:
            worker = self.spares.popleft()
            if worker.is_alive:
                return worker
            await worker.end()
        return None

    async def fill(self, loaded: anyio.Event, start: Callable[[], Awaitable[Worker]]) -> None:
        """Start the missing workers, from the second attempt on: the first may be the only one.

        Waits until the present agent is `loaded`, because many imports keep a processor busy for seconds.
        """
        await loaded.wait()
        async with self.lock:
            missing = SPARES - len(self.spares) if self.attempts > 1 and not self.is_closed else 0
            with suppress(UsageError, WorldError):  # the next attempt will say so
                for _ in range(missing):
                    self.spares.append(await start())

    async def close(self) -> None:
        self.is_closed = True
        while self.spares:
            await self.spares.popleft().end()
        while self.prepared:
            await self.prepared.popitem()[1].end()


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonAgent:
    """An agent that `python` runs. Its settings are those given here, overridden by the task's."""

    name: str
    target: Target
    python: Path
    digest: str
    environ: Mapping[str, str] = field(repr=False)
    model: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    leaves: Outputs = field(default_factory=Outputs)
    confidential: frozenset[str] = frozenset()
    _ready: _ReadyWorkers = field(default_factory=_ReadyWorkers, repr=False, compare=False)

    #: Seconds beyond its time limit in which an agent that keeps to it by itself tells what it used.
    grace: ClassVar[float] = 0.0
    where: ClassVar[Where] = "host"
    needs_reference: ClassVar[bool] = False
    time_limit: ClassVar[None] = None
    install: ClassVar[None] = None
    endpoint_secrets: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @property
    def outputs(self) -> Outputs:
        """The files that it leaves; none if it says that it keeps no trajectory."""
        return self.leaves if self._ready.facts.get("has_trajectory", True) else Outputs()

    @property
    def version(self) -> str | None:
        return self._ready.facts.get("version") or None

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of the URLs that the agent says its programs in the devbox reach."""
        parts = [urlsplit(url) for url in self._ready.facts.get("reaches", ())]
        return tuple(each.netloc.rpartition("@")[2] for each in parts if each.netloc)

    @property
    def secrets(self) -> Mapping[str, str]:
        """The endpoint's key, the `confidential` variables and those that the agent names; others are not known."""
        names = sorted({"RUNLOOP_API_KEY", *self.confidential, *self._ready.facts.get("secrets", ())})
        return {name: self.environ[name] for name in names if self.environ.get(name)}

    def unmet(self, context: AdditionalContext) -> Sequence[str]:
        """Name what the agent has no parameter for; known once it is checked."""
        given = {"mcp_servers": context.mcp_servers, "skills_dir": context.skills_dir, "trajectory": context.trajectory}
        facts = self._ready.facts
        unmet = [UNMET[name] for name, value in given.items() if value and name not in facts.get("takes", ())]
        if not unmet and facts.get("headers") is False and any(each.headers for each in context.mcp_servers):
            unmet.append("headers of MCP servers")
        return unmet

    async def check(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Load the agent once, in a worker, to see that it is there and can be called. The result is kept.

        `tell` is called with what takes long.

        Raises UsageError with close names, or with the end of the output of its import.
        """
        del tell
        async with self._ready.lock:
            if self._ready.is_checked:
                return
            worker = await self._start()
            ended = await worker.run(log=lambda _: None, time_limit=CHECK_TIMEOUT_S)
            if ended.exit_status != 0 or not ended.is_loaded:
                if ended.report is not None and "refused" in ended.report:
                    raise UsageError(f"agent {self.name}: {ended.report['refused']}")
                how = "took too long to load" if ended.exit_status is None else "cannot be loaded"
                words = tail(ended.output) or "it ended before it was loaded"
                raise UsageError(f"agent {self.name} {how} with {self.python} (Python 3.8 or newer):\n{words}")
            self._ready.is_checked = True
            self._ready.facts = ended.facts

    async def prepare(self, task: Task, workspace: Workspace) -> None:
        """Check the agent if that was not done yet, and let it prepare the devbox if it does so.

        Raises AgentSetupFailed.
        """
        try:
            await self.check()
        except UsageError as error:
            raise AgentSetupFailed(error.message) from error
        if not self._ready.facts.get("prepares"):
            return
        worker = await self._ready.take() or await self._start()
        ended = await worker.prepare(
            self._frame(task, workspace), answer=partial(_answer, workspace), time_limit=MAX_TIMEOUT_S
        )
        if ended is not None:
            raise AgentSetupFailed(f"{self.name}: it could not prepare the devbox\n{tail(ended.output)}".rstrip())
        self._ready.prepared[task.devbox_id] = worker

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Run the agent in a worker. Errors of the world in its workspace are raised here, not counted as the agent's.

        Usage that the agent returns replaces the sum of its notes.
        """
        noted = _Notes()
        worker = self._ready.prepared.pop(task.devbox_id, None) or await self._ready.take() or await self._start()
        loaded = anyio.Event()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._ready.fill, loaded, self._start)
                ended = await worker.run(
                    worker.turn or self._frame(task, workspace),
                    answer=partial(_answer, workspace),
                    note=noted.take,
                    log=log,
                    started=task.started,
                    loaded=loaded.set,
                    time_limit=task.time_limit + self.grace,
                )
                loaded.set()
        except BaseExceptionGroup as group:
            raise leaf(group) from None
        report = ended.report or {}
        return Result(
            exit_status=None if report.get("is_timed_out") else ended.exit_status,
            usage=known_usage({**noted.usage, **known_usage(report.get("usage"))}),
            exit_reason=known_reason(report.get("exit_reason")) or noted.exit_reason,
            message="" if ended.exit_status == 0 else tail(ended.output),
            version=str(report.get("version") or ""),
        )

    async def _start(self) -> Worker:
        return await Worker.start(self.python, self.target.as_header(), environment=self.environ)

    def _frame(self, task: Task, workspace: Workspace) -> Frame:
        """The frame that a worker runs its agent with."""
        environment = {
            "RUNLOOP_BASE_URL": task.endpoint,
            "SWEEP_DEVBOX_ID": task.devbox_id,
            "SWEEP_SCENARIO": task.scenario_name,
        }
        if task.model is not None:
            environment["SWEEP_MODEL"] = task.model
        header = {
            "environment": environment,
            "scenario_id": task.scenario_id,
            "scenario_name": task.scenario_name,
            "model": task.model,
            "settings": {**self.settings, **task.settings},
            **to_builtins(task.context),
            "devbox_id": task.devbox_id,
            "working_directory": workspace.working_directory,
            "scratch": workspace.scratch,
            "time_limit": task.time_limit,
        }
        return header, as_bytes(task.prompt)

    async def aclose(self) -> None:
        """End the workers that no attempt needed."""
        await self._ready.close()


@dataclass(slots=True)
class _Notes:
    """The notes of an agent while it worked: numbers are summed, of reasons the last counts."""

    usage: Counter[str] = field(default_factory=Counter)
    exit_reason: str = ""

    def take(self, header: Header) -> None:
        self.usage.update(known_usage(header.get("usage")))
        self.exit_reason = known_reason(header.get("exit_reason")) or self.exit_reason


async def _answer(workspace: Workspace, request: Header, body: bytes, send: Send) -> Frame:
    """Do a worker's request to the devbox. A wrong request is answered; errors of the world are raised."""

    async def pass_on(piece: str) -> None:
        await send({"output": piece}, b"")

    try:
        match request:
            case {
                "op": "exec",
                "command": str(command),
                "timeout": int() | float() as timeout,
                "environment": dict(environment),
                "cwd": str() | None as cwd,
            } if timeout > 0:
                done = await workspace.exec(
                    command,
                    timeout=min(timeout, MAX_TIMEOUT_S),
                    environment={str(name): str(value) for name, value in environment.items()},
                    cwd=cwd,
                    on_output=pass_on if request.get("stream") else None,
                )
                return {"exit_status": done.exit_status, "stdout": done.stdout, "stderr": done.stderr}, b""
            case {"op": "read", "path": str(path)}:
                size = 0  # passed on piece by piece: it may fill the agent's memory, not ours
                async with aclosing(workspace.pieces(path)) as pieces:
                    async for piece in pieces:
                        size += len(piece)
                        check_sizes(0, size)
                        await send({"piece": True}, piece)
            case {"op": "write", "path": str(path)}:
                await workspace.write(path, body)
            case {"op": "ready"}:
                pass  # it prepared its devbox when its turn had come already
            case _:
                raise ValueError(f"not a request to a workspace: {str(request)[:200]}")  # noqa: TRY301
    except Unauthorized:
        raise
    except (OSError, ValueError, Refused, UsageError) as error:
        return {"error": type(error).__name__, "message": str(error)}, b""
    return {}, b""
