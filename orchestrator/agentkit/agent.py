"""The contract of an agent: it gets a task and a workspace in its devbox, and returns a result.

One contract for every kind of agent. They differ in where they work: an agent in the devbox does all its work through
one `Workspace.run`, which survives us and can be waited for again; an agent on this host is a process of ours and dies
with us.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeGuard

from orchestrator.core.protocol import AdditionalContext
from orchestrator.core.records import Install

#: The numbers that an agent may report; one as large as the limit, infinite or NaN is ignored.
NUMBERS: Final = ("input_tokens", "output_tokens", "cached_tokens", "cost_usd", "turns")
MAX_USAGE: Final = 1e15
#: Characters of an exit reason.
MAX_REASON_CHARS: Final = 200

Where = Literal["devbox", "host"]
#: Takes a piece of a command's output.
OnOutput = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One attempt's work for an agent.

    `step` names the one under way of a scenario with several. `reference_output` is the solution, for agents that may
    see it (only `oracle` may). `context` is what the scenario gives beside the problem statement. `time_limit` is in
    seconds. `folder` is this attempt's own folder on this host; `devbox_id` and `endpoint` let a host agent use a
    client of its own; `upstream` returns the endpoint's present address and our key to it. `log` is the attempt's
    agent.log, which is complete once the agent has ended. `settings` come from the arm. A host agent calls `started`
    with the id of its process.
    """

    scenario_id: str
    scenario_name: str
    prompt: str
    time_limit: float
    folder: Path
    log: Path
    devbox_id: str
    endpoint: str
    upstream: Callable[[], tuple[str, str]] = field(default=lambda: ("", ""), repr=False, compare=False)
    started: Callable[[int], None] = field(default=lambda _: None, repr=False, compare=False)
    model: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference_output: str | None = None
    context: AdditionalContext = field(default_factory=AdditionalContext)
    step: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The files to collect from an agent's devbox: paths and globs, absolute or relative to its home.

    `artifacts` are taken as they are. `trajectory` is the record of its work in `trajectory_format` (see
    `agentkit.trajectory`); with a format and no files it is the agent's printed output.
    """

    artifacts: tuple[str, ...] = ()
    trajectory: tuple[str, ...] = ()
    trajectory_format: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """The end of a command in the devbox; `exit_status` is 128 + n after signal n, None when it ran out of time.

    Long output is cut in the middle, with a note there.
    """

    exit_status: int | None
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The end of an agent: exit status (None: its time was over) and its report.

    `usage` may have the keys in `NUMBERS`. `exit_reason` is the agent's own word for why it ended, or empty. `version`
    is that of the agent that worked, where only it knows.
    """

    exit_status: int | None
    usage: Mapping[str, float] = field(default_factory=dict)
    exit_reason: str = ""
    message: str = ""
    version: str = ""

    @property
    def is_timed_out(self) -> bool:
        return self.exit_status is None


def is_usage(found: object) -> TypeGuard[float]:
    """True for a number that can be usage; an agent may report anything."""
    return isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < MAX_USAGE


def known_usage(reported: object) -> dict[str, float]:
    """The known numbers of a report, which may be anything."""
    if not isinstance(reported, Mapping):
        return {}
    return {name: reported[name] for name in NUMBERS if is_usage(reported.get(name))}


def known_reason(reported: object) -> str:
    """The exit reason of a report, which may be anything; half of a surrogate pair in it becomes a `?`."""
    if not isinstance(reported, str):
        return ""
    return reported.strip()[:MAX_REASON_CHARS].encode("utf-8", "replace").decode()


async def whole(pieces: AsyncGenerator[bytes, None], name: str, at_most: int) -> bytes:
    """Join the pieces of a file. Raises ValueError once there are more than `at_most` bytes."""
    data = bytearray()
    async with aclosing(pieces):
        async for piece in pieces:
            data += piece
            if len(data) > at_most:
                raise ValueError(f"{name} has more than {at_most:,} bytes")
    return bytes(data)


class Workspace(Protocol):
    """An agent's access to its devbox. Paths are absolute there, or relative to its working directory."""

    @property
    def working_directory(self) -> str: ...

    @property
    def home(self) -> str:
        """The home of the devbox's user; absolute."""

    @property
    def installed(self) -> frozenset[str]:
        """The keys of the installs that the endpoint has already made."""

    @property
    def scratch(self) -> str:
        """A folder for files about the task, outside the working directory; absolute in the devbox."""

    async def exec(
        self,
        command: str,
        *,
        timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
        on_output: OnOutput | None = None,
    ) -> ExecResult:
        """Run a shell command to its end, or kill it with all it started after `timeout` seconds, or when canceled.

        `on_output` gets its standard output while it runs, complete and in order.
        """

    async def run(
        self,
        command: str,
        *,
        time_limit: float,
        environment: Mapping[str, str] | None = None,
        stdin_file: str | None = None,
    ) -> ExecResult:
        """Run the agent itself: at most once in this attempt, however often this is called.

        Its output goes to the attempt's `agent.log` while it runs; the result's `stdout` and `stderr` are the ends of
        it. A call after a restart of ours waits for the run that was started before.
        """

    async def read(self, path: str, *, at_most: int) -> bytes:
        """The content of a file. Raises FileNotFoundError, and ValueError if it has more than `at_most` bytes."""

    def pieces(self, path: str) -> AsyncGenerator[bytes, None]:
        """The content of a file of any size, in pieces. Raises FileNotFoundError."""

    async def write(self, path: str, data: bytes) -> None:
        """Write a file, with its missing folders."""


class Agent(Protocol):
    """Solves tasks. One instance serves every attempt of its arm, many at once; it keeps no state of an attempt."""

    @property
    def name(self) -> str: ...

    @property
    def where(self) -> Where:
        """The place of its work; an interrupted attempt can only resume in the devbox."""

    @property
    def needs_reference(self) -> bool:
        """True if the task must have the scenario's reference output."""

    @property
    def digest(self) -> str:
        """A digest of the agent's definition; two results can be compared only if it is the same."""

    @property
    def version(self) -> str | None:
        """The version of the agent that is run, if it has versions."""

    @property
    def model(self) -> str | None:
        """The model for a task that names none; None leaves the choice to the agent."""

    @property
    def time_limit(self) -> float | None:
        """Seconds that it may work if neither the user nor the scenario says; None: the common default."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that it must reach from the devbox: `name`, `*.name` or `name:port`."""

    @property
    def install(self) -> Install | None:
        """The software that it needs in the devbox. `prepare` installs it if the endpoint did not."""

    @property
    def outputs(self) -> Outputs:
        """Its files to collect."""

    @property
    def secrets(self) -> Mapping[str, str]:
        """Environment variables with values that must never be written anywhere."""

    @property
    def endpoint_secrets(self) -> Mapping[str, str]:
        """Variables with a value that is not here: each with the name of the endpoint's secret that has it."""

    def unmet(self, context: AdditionalContext) -> Sequence[str]:
        """Name what of a scenario's additional context the agent cannot take, each in a few words."""

    async def prepare(self, task: Task, workspace: Workspace) -> None:
        """Install the agent's software in the devbox. Raises AgentSetupFailed."""

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Work on the task until done or out of time. `log` gets the output of a host agent."""

    async def aclose(self) -> None:
        """Release what the agent holds on this host. Bounded; called once, when the arm is done."""
