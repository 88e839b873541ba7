"""Python agents: a class or function of the user's, run in a worker process per attempt.

In a process of its own, because it may block, crash, leak or need packages that disagree with ours; with the user's
interpreter, because that is where those packages are. It reaches the devbox through us: what it asks of its workspace
comes here, and goes to the very `Workspace` that the attempt was given.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio

from orchestrator.agentkit.agent import MAX_REASON, NUMBERS, Outputs, Result, Task, Where, Workspace, is_usage
from orchestrator.agentkit.file.command import as_bytes, tail
from orchestrator.agentkit.process import Ended, Frame, Header, Send, Worker
from orchestrator.agentkit.python.interpreter import Target
from orchestrator.agentkit.python.worker.frames import check_sizes
from orchestrator.core.errors import AgentSetupFailed, Refused, Unauthorized, UsageError, leaf
from orchestrator.core.records import Install

#: Seconds; no devbox lives longer.
MAX_TIMEOUT: Final = 48 * 3600.0
NO_OUTPUTS: Final = Outputs()
#: Workers that have loaded the agent and wait for the next attempts.
SPARES: Final = 2
#: Seconds for importing the agent to see whether it is there: some import a machine-learning framework.
CHECK_TIMEOUT: Final = 120.0


@dataclass(slots=True)
class _Arm:
    """What an agent holds between its attempts: that it was found loadable, and workers that have loaded it.

    Each worker serves one attempt. Forking them from one that has loaded the agent would be quicker still, but what an
    agent imports may have started threads, seeded its dice or opened connections, and none of these survives a fork.
    """

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    is_checked: bool = False
    spares: deque[Worker] = field(default_factory=deque)
    attempts: int = 0
    is_closed: bool = False

    async def take(self) -> Worker | None:
        """A worker that is ready, or nearly; the first attempt never finds one."""
        self.attempts += 1
        while self.spares:
            worker = self.spares.popleft()
            if worker.is_alive:
                return worker
            await worker.end()
        return None

    async def fill(self, loaded: anyio.Event, start: Callable[[], Awaitable[Worker]]) -> None:
        """Start what is missing, unless nobody knows yet that there will be another attempt.

        Only once the agent that works now is `loaded`, for what many import keeps a processor busy for seconds.
        """
        await loaded.wait()
        async with self.lock:
            missing = SPARES - len(self.spares) if self.attempts > 1 and not self.is_closed else 0
            with suppress(UsageError):  # the next attempt will say so
                for _ in range(missing):
                    self.spares.append(await start())

    async def close(self) -> None:
        self.is_closed = True
        while self.spares:
            await self.spares.popleft().end()


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
    outputs: Outputs = NO_OUTPUTS
    confidential: frozenset[str] = frozenset()
    _arm: _Arm = field(default_factory=_Arm, repr=False, compare=False)

    @property
    def where(self) -> Where:
        return "host"

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def version(self) -> str | None:
        return None

    @property
    def time_limit(self) -> float | None:
        return None

    @property
    def hosts(self) -> tuple[str, ...]:
        return ()

    @property
    def install(self) -> Install | None:
        return None

    @property
    def endpoint_secrets(self) -> Mapping[str, str]:
        return {}

    @property
    def secrets(self) -> Mapping[str, str]:
        """The endpoint's key and what else is `confidential`; we do not know what more of the environment is secret."""
        names = sorted({"RUNLOOP_API_KEY", *self.confidential})
        return {name: self.environ[name] for name in names if self.environ.get(name)}

    async def check(self) -> None:
        """Load the agent once, in a worker, to see that it is there and can be called.

        Raises UsageError with the near names, or the end of what its import printed. Costs nothing the second time.
        """
        async with self._arm.lock:
            if not self._arm.is_checked:
                await self._check()
                self._arm.is_checked = True

    async def _check(self) -> None:
        worker = await self._start()
        ended = await worker.run(log=_discard, time_limit=CHECK_TIMEOUT)
        if ended.exit_status == 0 and ended.is_loaded:
            return
        if ended.report is not None and "refused" in ended.report:
            raise UsageError(f"agent {self.name}: {ended.report['refused']}")
        how = "took too long to load" if ended.exit_status is None else "cannot be loaded"
        words = tail(ended.output) or "it ended before it was loaded"
        raise UsageError(f"agent {self.name} {how} with {self.python} (Python 3.8 or newer):\n{words}")

    async def prepare(self, workspace: Workspace) -> None:
        """Nothing to install; checks the agent if nobody did. Raises AgentSetupFailed."""
        del workspace
        try:
            await self.check()
        except UsageError as error:
            raise AgentSetupFailed(error.message) from error

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Run the agent in a worker. What the world does to its workspace is raised here, not blamed on the agent.

        What it returns of its usage wins over the sum of what it noted.
        """
        noted = _Noted()

        async def answer(header: Header, body: bytes, send: Send) -> Frame:
            return await _answer(workspace, header, body, send)

        worker = await self._arm.take() or await self._start()
        loaded = anyio.Event()
        run = worker.run(
            (self._job(task, workspace), as_bytes(task.prompt)),
            answer=answer,
            note=noted.take,
            log=log,
            started=task.started,
            loaded=loaded.set,
            time_limit=task.time_limit,
        )
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._arm.fill, loaded, self._start)
                ended = await run
                loaded.set()
        except BaseExceptionGroup as group:
            raise leaf(group) from None
        return _result(ended, noted)

    async def _start(self) -> Worker:
        return await Worker.start(self.python, self.target.as_header(), environment=self.environ)

    def _job(self, task: Task, workspace: Workspace) -> Header:
        return {
            "environment": _facts(task),
            "scenario_id": task.scenario_id,
            "scenario_name": task.scenario_name,
            "model": task.model,
            "settings": {**self.settings, **task.settings},
            "devbox_id": task.devbox_id,
            "working_directory": workspace.working_directory,
            "scratch": workspace.scratch,
        }

    async def aclose(self) -> None:
        """End the workers that no attempt needed."""
        await self._arm.close()


def _facts(task: Task) -> dict[str, str]:
    facts = {"RUNLOOP_BASE_URL": task.endpoint, "SWEEP_DEVBOX_ID": task.devbox_id, "SWEEP_SCENARIO": task.scenario_name}
    if task.model is not None:
        facts["SWEEP_MODEL"] = task.model
    return facts


@dataclass(slots=True)
class _Noted:
    """What an agent noted while it worked: numbers are added up, of words the last counts."""

    usage: Counter[str] = field(default_factory=Counter)
    exit_reason: str = ""

    def take(self, header: Header) -> None:
        self.usage.update(_usage(header.get("usage")))
        self.exit_reason = _word(header.get("exit_reason")) or self.exit_reason


def _result(ended: Ended, noted: _Noted) -> Result:
    report = ended.report or {}
    return Result(
        exit_status=ended.exit_status,
        usage={**noted.usage, **_usage(report.get("usage"))},
        exit_reason=_word(report.get("exit_reason")) or noted.exit_reason,
        message="" if ended.exit_status == 0 else tail(ended.output),
    )


def _word(reported: object) -> str:
    return reported.strip()[:MAX_REASON] if isinstance(reported, str) else ""


def _usage(reported: object) -> dict[str, float]:
    """The numbers we know of; a report comes from the agent's process, and may be anything."""
    if not isinstance(reported, dict):
        return {}
    return {name: reported[name] for name in NUMBERS if is_usage(reported.get(name))}


def _discard(_chunk: bytes) -> None:
    """The end of the output is kept in `Ended`, and that is enough."""


async def _answer(workspace: Workspace, header: Header, body: bytes, send: Send) -> Frame:
    """Do what the worker asks of the devbox. What it asked wrongly is answered; the world's faults are raised."""
    try:
        act = _request(workspace, header, body, send)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return _refusal(ValueError(f"not a request to a workspace: {error}")), b""
    try:
        return await act()
    except Unauthorized:
        raise
    except (OSError, ValueError, Refused, UsageError) as error:
        return _refusal(error), b""


def _request(workspace: Workspace, header: Header, body: bytes, send: Send) -> Callable[[], Awaitable[Frame]]:
    match header["op"]:
        case "exec":
            return _exec(workspace, header, send)
        case "read":
            return _read(workspace, str(header["path"]), send)
        case "write":
            return _write(workspace, str(header["path"]), body)
        case other:
            raise ValueError(f"unknown operation {other!r}")


def _exec(workspace: Workspace, header: Header, send: Send) -> Callable[[], Awaitable[Frame]]:
    command, timeout = str(header["command"]), min(float(header["timeout"]), MAX_TIMEOUT)
    if not timeout > 0:
        raise ValueError("a timeout is a positive number of seconds")
    environment = {str(name): str(value) for name, value in header["environment"].items()}
    cwd = None if header["cwd"] is None else str(header["cwd"])

    on_output = None
    if header.get("stream"):

        async def on_output(piece: str) -> None:
            await send({"output": piece}, b"")

    async def act() -> Frame:
        result = await workspace.exec(command, timeout=timeout, environment=environment, cwd=cwd, on_output=on_output)
        return {"exit_status": result.exit_status, "stdout": result.stdout, "stderr": result.stderr}, b""

    return act


def _read(workspace: Workspace, path: str, send: Send) -> Callable[[], Awaitable[Frame]]:
    async def act() -> Frame:
        """Pass a file on as it comes: it is the agent's memory that it may fill."""
        size = 0
        async with aclosing(workspace.pieces(path)) as pieces:
            async for piece in pieces:
                size += len(piece)
                check_sizes(0, size)
                await send({"piece": True}, piece)
        return {}, b""

    return act


def _write(workspace: Workspace, path: str, data: bytes) -> Callable[[], Awaitable[Frame]]:
    async def act() -> Frame:
        await workspace.write(path, data)
        return {}, b""

    return act


def _refusal(error: Exception) -> Header:
    return {"error": type(error).__name__, "message": str(error)}
