"""Python agents: a class or function of the user's, run in a worker process per attempt.

In a process of its own, because it may block, crash, leak or need packages that disagree with ours; with the user's
interpreter, because that is where those packages are. It reaches the devbox through us: what it asks of its workspace
comes here, and goes to the very `Workspace` that the attempt was given.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio

from orchestrator.agentkit.command import tail
from orchestrator.agentkit.contract import Result, Task, Where, Workspace
from orchestrator.agentkit.process import Ended, Frame, Header, run_worker
from orchestrator.errors import AgentSetupFailed, Refused, Unauthorized, UsageError

USAGE: Final = ("input_tokens", "output_tokens", "cached_tokens", "cost_usd", "turns")
#: What is larger, infinite or not a number is not usage.
MAX_USAGE: Final = 1e15
#: Seconds; no devbox lives longer.
MAX_TIMEOUT: Final = 48 * 3600.0
#: Seconds for importing the agent to see whether it is there: some import a machine-learning framework.
CHECK_TIMEOUT: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which class or function: `entry` of a file (an absolute path) or of a module."""

    entry: str
    file: Path | None = None
    module: str | None = None

    def as_header(self) -> Header:
        return {"file": None if self.file is None else str(self.file), "module": self.module, "entry": self.entry}


@dataclass(slots=True)
class _Checked:
    """That the agent was found loadable: known once for all attempts."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    is_done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonAgent:
    """An agent that `python` runs. Its settings are those given here, overridden by the task's."""

    name: str
    target: Target
    python: Path
    digest: str
    environ: Mapping[str, str] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    _checked: _Checked = field(default_factory=_Checked, repr=False)

    @property
    def where(self) -> Where:
        return "host"

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def secrets(self) -> Mapping[str, str]:
        """The key of the endpoint, if the user has one; we do not know what else in the environment is secret."""
        return {name: self.environ[name] for name in ("RUNLOOP_API_KEY",) if self.environ.get(name)}

    async def check(self) -> None:
        """Load the agent once, in a worker, to see that it is there and can be called.

        Raises UsageError with the near names, or the end of what its import printed. Costs nothing the second time.
        """
        async with self._checked.lock:
            if not self._checked.is_done:
                await self._check()
                self._checked.is_done = True

    async def _check(self) -> None:
        job = {"op": "check", **self.target.as_header()}
        ended = await run_worker(
            self.python,
            (job, b""),
            environment=self.environ,
            answer=_no_workspace,
            log=_discard,
            time_limit=CHECK_TIMEOUT,
        )
        if ended.exit_status == 0:
            return
        if ended.report is not None and "refused" in ended.report:
            raise UsageError(f"agent {self.name}: {ended.report['refused']}")
        how = "took too long to load" if ended.exit_status is None else "cannot be loaded"
        raise UsageError(f"agent {self.name} {how} with {self.python} (Python 3.8 or newer):\n{tail(ended.output)}")

    async def prepare(self, workspace: Workspace) -> None:
        """Nothing to install; checks the agent if nobody did. Raises AgentSetupFailed."""
        del workspace
        try:
            await self.check()
        except UsageError as error:
            raise AgentSetupFailed(error.message) from error

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Run the agent in a worker. What the world does to its workspace is raised here, not blamed on the agent."""

        async def answer(header: Header, body: bytes) -> Frame:
            return await _answer(workspace, header, body)

        ended = await run_worker(
            self.python,
            (self._job(task, workspace), task.prompt.encode(errors="surrogateescape")),
            environment={**self.environ, **_facts(task)},
            answer=answer,
            log=log,
            started=task.started,
            time_limit=task.time_limit,
        )
        return _result(ended)

    def _job(self, task: Task, workspace: Workspace) -> Header:
        return {
            "op": "solve",
            **self.target.as_header(),
            "scenario_id": task.scenario_id,
            "scenario_name": task.scenario_name,
            "model": task.model,
            "settings": {**self.settings, **task.settings},
            "devbox_id": task.devbox_id,
            "working_directory": workspace.working_directory,
        }

    async def aclose(self) -> None:
        """Every worker has ended with its attempt."""


def find_interpreter(python: Path | None, environ: Mapping[str, str]) -> Path:
    """The interpreter the user means: the one given, else the active virtual environment's, else ours.

    One without a folder in its name is looked up on PATH. Raises UsageError if the one given is not there.
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


def digest_of(target: Target, python: Path, environ: Mapping[str, str]) -> str:
    """The digest of the agent's own file, and of its name; of the name alone for a module that cannot be found.

    Modules are looked up without importing them: in the current folder, PYTHONPATH and the interpreter's packages.
    """
    file = target.file
    if target.module is not None:
        file = _module_file(target.module, python, environ)
    name = f"{target.module or ''}:{target.entry}"
    content = b"" if file is None else file.read_bytes()
    return hashlib.sha256(name.encode() + b"\0" + content).hexdigest()


def _module_file(module: str, python: Path, environ: Mapping[str, str]) -> Path | None:
    path = Path(*module.split("."))
    for folder in _folders(python, environ):
        for candidate in (folder / path.with_suffix(".py"), folder / path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _folders(python: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    yield Path.cwd()
    yield from (Path(entry) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry)
    for packages in sorted(python.parent.parent.glob("lib/python3*/site-packages")):
        yield packages
        for file in sorted(packages.glob("*.pth")):  # editable installs
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            yield from (Path(line) for line in lines if line.startswith("/"))


def _facts(task: Task) -> dict[str, str]:
    facts = {"RUNLOOP_BASE_URL": task.endpoint, "SWEEP_DEVBOX_ID": task.devbox_id, "SWEEP_SCENARIO": task.scenario_name}
    if task.model is not None:
        facts["SWEEP_MODEL"] = task.model
    return facts


def _result(ended: Ended) -> Result:
    reported = ended.report.get("usage") if ended.report is not None else None
    message = "" if ended.exit_status == 0 else tail(ended.output)
    return Result(exit_status=ended.exit_status, usage=_usage(reported), message=message)


def _usage(reported: object) -> dict[str, float]:
    """The numbers we know of; a report comes from the agent's process, and may be anything."""
    if not isinstance(reported, dict):
        return {}
    numbers = {key: reported[key] for key in USAGE if isinstance(reported.get(key), int | float)}
    return {key: number for key, number in numbers.items() if abs(number) < MAX_USAGE}


def _discard(_chunk: bytes) -> None:
    """The end of the output is kept in `Ended`, and that is enough."""


async def _no_workspace(_header: Header, _body: bytes) -> Frame:
    return _refusal(RuntimeError("there is no devbox yet: the agent is only being loaded")), b""


async def _answer(workspace: Workspace, header: Header, body: bytes) -> Frame:
    """Do what the worker asks of the devbox. What it asked wrongly is answered; the world's faults are raised."""
    try:
        act = _request(workspace, header, body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return _refusal(ValueError(f"not a request to a workspace: {error}")), b""
    try:
        return await act()
    except Unauthorized:
        raise
    except (OSError, ValueError, Refused, UsageError) as error:
        return _refusal(error), b""


def _request(workspace: Workspace, header: Header, body: bytes) -> Callable[[], Awaitable[Frame]]:
    match header["op"]:
        case "exec":
            return _exec(workspace, header)
        case "read":
            return _read(workspace, str(header["path"]))
        case "write":
            return _write(workspace, str(header["path"]), body)
        case other:
            raise ValueError(f"unknown operation {other!r}")


def _exec(workspace: Workspace, header: Header) -> Callable[[], Awaitable[Frame]]:
    command, timeout = str(header["command"]), min(float(header["timeout"]), MAX_TIMEOUT)
    if not timeout > 0:
        raise ValueError("a timeout is a positive number of seconds")
    environment = {str(name): str(value) for name, value in header["environment"].items()}
    cwd = None if header["cwd"] is None else str(header["cwd"])

    async def act() -> Frame:
        result = await workspace.exec(command, timeout=timeout, environment=environment, cwd=cwd)
        return {"exit_status": result.exit_status, "stdout": result.stdout, "stderr": result.stderr}, b""

    return act


def _read(workspace: Workspace, path: str) -> Callable[[], Awaitable[Frame]]:
    async def act() -> Frame:
        return {}, await workspace.read(path)

    return act


def _write(workspace: Workspace, path: str, data: bytes) -> Callable[[], Awaitable[Frame]]:
    async def act() -> Frame:
        await workspace.write(path, data)
        return {}, b""

    return act


def _refusal(error: Exception) -> Header:
    return {"error": type(error).__name__, "message": str(error)}
