"""What an agent author sees: a task, a workspace in its devbox, and a result to return.

One contract for every kind of agent. What differs is where it works: an agent in the devbox does all its work through
one `Workspace.run`, which survives us and can be waited for again; an agent on this host is a process of ours and dies
with us.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Where = Literal["devbox", "host"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What an agent is asked to do.

    `reference_output` is the solution, for agents that may see it (none but `oracle` may). `time_limit` is in seconds.
    `folder` is this attempt's own folder on this host; `devbox_id` and `endpoint` let a host agent use a client of its
    own. `settings` come from the arm. A host agent tells `started` the id of its process.
    """

    scenario_id: str
    scenario_name: str
    prompt: str
    time_limit: float
    folder: Path
    devbox_id: str
    endpoint: str
    started: Callable[[int], None] = field(default=lambda _: None, repr=False, compare=False)
    model: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference_output: str | None = None


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

    `usage` may have the keys input_tokens, output_tokens, cached_tokens, cost_usd, turns.
    """

    exit_status: int | None
    usage: Mapping[str, float] = field(default_factory=dict)
    message: str = ""

    @property
    def is_timed_out(self) -> bool:
        return self.exit_status is None


class Workspace(Protocol):
    """The devbox, as an agent uses it. Paths are absolute in the devbox, or relative to its working directory."""

    @property
    def working_directory(self) -> str: ...

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
    ) -> ExecResult:
        """Run a shell command to its end, or kill it with all it started after `timeout` seconds."""

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

    async def read(self, path: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""

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
    def secrets(self) -> Mapping[str, str]:
        """Environment variables whose values must never be written anywhere."""

    async def prepare(self, workspace: Workspace) -> None:
        """Install what the agent needs in the devbox. Raises AgentSetupFailed."""

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Work on the task until done or out of time. What a host agent prints goes to `log`."""

    async def aclose(self) -> None:
        """End what the agent holds on this host. Bounded; called once, when the arm is done."""
