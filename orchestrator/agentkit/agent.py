"""What an agent author sees: a task, a workspace in its devbox, and a result to return.

One contract for every kind of agent. What differs is where it works: an agent in the devbox does all its work through
one `Workspace.run`, which survives us and can be waited for again; an agent on this host is a process of ours and dies
with us.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeGuard

from orchestrator.core.records import Install

#: What an agent may report of itself, as numbers; what is as large as the limit, infinite or not a number is none.
NUMBERS: Final = ("input_tokens", "output_tokens", "cached_tokens", "cost_usd", "turns")
MAX_USAGE: Final = 1e15
#: Characters of an exit reason.
MAX_REASON: Final = 200

Where = Literal["devbox", "host"]
#: Takes a piece of what a command prints.
OnOutput = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What an agent is asked to do.

    `reference_output` is the solution, for agents that may see it (none but `oracle` may). `time_limit` is in seconds.
    `folder` is this attempt's own folder on this host; `devbox_id` and `endpoint` let a host agent use a client of its
    own; `upstream` tells where the endpoint is just now, and our key to it. `log` is the attempt's agent.log, which has
    everything that the agent printed once it has ended. `settings` come from the arm. A host agent tells `started` the
    id of its process.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What an agent leaves in its devbox that is to come home: paths and globs, absolute or relative to its home.

    `artifacts` are taken as they are. `trajectory` has what it did, in the format of that name (see
    `agentkit.trajectory`); an empty one is no file but what the agent printed.
    """

    artifacts: tuple[str, ...] = ()
    trajectory: tuple[str, ...] = ()
    trajectory_format: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """How a command in the devbox ended; `exit_status` is 128 + n after signal n, None when it ran out of time.

    The output is cut in the middle when it is long, which it says.
    """

    exit_status: int | None
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How the agent ended: exit status (None: its time was over) and what it reports of itself.

    `usage` may have the keys in `NUMBERS`. `exit_reason` is the agent's own word for why it ended, empty where it has
    none.
    """

    exit_status: int | None
    usage: Mapping[str, float] = field(default_factory=dict)
    exit_reason: str = ""
    message: str = ""

    @property
    def is_timed_out(self) -> bool:
        return self.exit_status is None


def is_usage(found: object) -> TypeGuard[float]:
    """Whether what an agent reports is a number that can be meant; it may report anything."""
    return isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < MAX_USAGE


async def whole(pieces: AsyncGenerator[bytes, None], name: str, at_most: int) -> bytes:
    """A file from its pieces, of which no more are taken than it may have. Raises ValueError if it has more."""
    data = bytearray()
    async with aclosing(pieces):
        async for piece in pieces:
            data += piece
            if len(data) > at_most:
                raise ValueError(f"{name} has more than {at_most:,} bytes")
    return bytes(data)


class Workspace(Protocol):
    """The devbox, as an agent uses it. Paths are absolute in the devbox, or relative to its working directory."""

    @property
    def working_directory(self) -> str: ...

    @property
    def home(self) -> str:
        """The home of the devbox's user; absolute."""

    @property
    def installed(self) -> frozenset[str]:
        """The keys of the installs that the endpoint made already."""

    @property
    def scratch(self) -> str:
        """A folder for files about the task, outside the working directory; absolute, as commands there see it."""

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

        What it prints on its standard output goes to `on_output` while it runs, whole and in order.
        """

    async def run(
        self,
        command: str,
        *,
        time_limit: float,
        environment: Mapping[str, str] | None = None,
        stdin_file: str | None = None,
    ) -> ExecResult:
        """Run the agent itself: at most once in the life of this attempt, however often this is called.

        Its output goes to the attempt's `agent.log` while it runs; the result's `stdout` and `stderr` are the ends of
        it. A call after a restart of ours waits for the run that is there.
        """

    async def read(self, path: str, *, at_most: int) -> bytes:
        """The content of a file. Raises FileNotFoundError, and ValueError if it has more than so many bytes."""

    def pieces(self, path: str) -> AsyncGenerator[bytes, None]:
        """The content of a file of any size, as it comes. Raises FileNotFoundError."""

    async def write(self, path: str, data: bytes) -> None:
        """Write a file, with its missing folders."""


class Agent(Protocol):
    """A way to solve tasks. One instance serves every attempt of its arm, many at once; it keeps no state of them."""

    @property
    def name(self) -> str: ...

    @property
    def where(self) -> Where:
        """Where it works: decides whether an interrupted attempt can go on."""

    @property
    def needs_reference(self) -> bool:
        """Whether the task must carry the scenario's reference output."""

    @property
    def digest(self) -> str:
        """Changes when the agent's definition does; two results compare only if it is the same."""

    @property
    def version(self) -> str | None:
        """Which version of itself is run; None where it has none."""

    @property
    def model(self) -> str | None:
        """The model that it works with where the task names none; None where it knows best itself."""

    @property
    def time_limit(self) -> float | None:
        """Seconds it may work where neither the user nor the scenario says; None: as long as everybody."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that it must reach from the devbox: `name`, `*.name` or `name:port`."""

    @property
    def install(self) -> Install | None:
        """What it needs in the devbox. `prepare` does it where the endpoint did not."""

    @property
    def outputs(self) -> Outputs:
        """What is to come home of it."""

    @property
    def secrets(self) -> Mapping[str, str]:
        """Environment variables whose values must never be written anywhere."""

    @property
    def endpoint_secrets(self) -> Mapping[str, str]:
        """Variable to the name of the endpoint's secret that it comes from, where its value is not here."""

    async def prepare(self, workspace: Workspace) -> None:
        """Install what the agent needs in the devbox. Raises AgentSetupFailed."""

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Work on the task until done or out of time. What a host agent prints goes to `log`."""

    async def aclose(self) -> None:
        """End what the agent holds on this host. Bounded; called once, when the arm is done."""
