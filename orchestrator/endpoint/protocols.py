"""The endpoint as the rest of the runner sees it, in our words and records: four small protocols and their sum.

Every method raises the `WorldError`s of `core.errors` and nothing else, unless it says so; Missing for an id that the
endpoint does not know. Short calls are repeated by the gateway while the caller's deadline allows; a wait has no
deadline of its own. A `key` makes a call safe to repeat: the endpoint has its effect once. Ask for the smallest
protocol that you need. `tests/endpoint/test_conformance.py` holds every implementation to all of them.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Final, Protocol

from orchestrator.core import records

#: The feature of an endpoint that can keep apart what is the agent's and what is the scorers'.
SETTLEMENTS: Final = "settlements"
#: The same, of one that prepares environments before they are needed.
PREPARATIONS: Final = "preparations"
#: The same, of one whose devboxes may have its machine's own network.
HOST_NETWORK: Final = "host_network"
NO_VARIABLES: Final[Mapping[str, str]] = {}


class Definitions(Protocol):
    """Benchmarks, their scenarios, and the names of secrets: what a plan is made from."""

    @property
    def url(self) -> str: ...

    async def benchmarks(self) -> list[records.Benchmark]:
        """Every benchmark, public ones included."""

    async def summaries(
        self,
        benchmark: records.Benchmark,
        at_most: int | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> list[records.ScenarioSummary]:
        """The benchmark's scenarios, in its order: all, or the first `at_most` of them.

        Those that cannot run are marked as `unsupported` by endpoints of ours, and missing elsewhere. A scenario that
        the globs leave out is listed too, but may have only its id and name, because the endpoint need not read it.
        """

    async def scenario(self, scenario_id: str) -> records.Scenario: ...

    async def secret_names(self) -> frozenset[str]:
        """The names of the secrets that the endpoint keeps; none where it keeps none."""


class Runs(Protocol):
    """Benchmark runs and scenario runs.

    A scenario run is `running`, then `scoring`, then `scored` or `failed`, at last `completed` or `canceled`. If its
    devbox ends before it has its score it is `failed`, or `timeout` if that was the end of the devbox's keep-alive. A
    benchmark run completes by itself once every scenario has a result.
    """

    async def start_benchmark_run(
        self, benchmark_id: str, *, name: str, metadata: Mapping[str, str], key: str
    ) -> records.BenchmarkRun:
        """Start a benchmark run. One attempt, as `start_run`."""

    async def benchmark_run(self, run_id: str) -> records.BenchmarkRun: ...

    async def list_benchmark_runs(
        self, *, benchmark: str | None = None, state: str | None = None
    ) -> list[records.BenchmarkRun]:
        """Every benchmark run, or those of one benchmark or in one state."""

    async def complete_benchmark_run(self, run_id: str) -> None:
        """End a benchmark run: complete its scored runs, cancel its running ones. Does nothing if it has ended."""

    async def cancel_benchmark_run(self, run_id: str) -> None:
        """Cancel a benchmark run with everything in it. Does nothing if it has ended."""

    async def start_run(
        self,
        scenario_id: str,
        *,
        benchmark_run_id: str | None,
        name: str,
        metadata: Mapping[str, str],
        keep_alive: int,
        needs: records.Needs,
        key: str,
        variables: Mapping[str, str] = NO_VARIABLES,
    ) -> records.ScenarioRun:
        """Start a run and boot its devbox, which has `variables` and ends by itself after `keep_alive` seconds.

        One attempt: it is not repeated here, because a caller that waits for another try should hold nothing.
        """

    async def run(self, run_id: str) -> records.ScenarioRun: ...

    async def list_runs(
        self, *, benchmark_run: str | None = None, scenario: str | None = None, state: str | None = None
    ) -> list[records.ScenarioRun]:
        """Every scenario run, or those of one benchmark run, of one scenario, or in one state."""

    async def agent_begins(self, run_id: str) -> bool:
        """Make a run's devbox ready for its step, if it has several, and note its state: an agent begins.

        False if the endpoint cannot. Raises Conflicted if the step cannot begin.
        """

    async def agent_ended(
        self,
        run_id: str,
        *,
        scoring: str,
        devbox: str | None = None,
        execution: str | None = None,
        kept: str | None = None,
    ) -> records.Settlement | None:
        """Settle the devbox after its agent ended, for a `scoring` that is declared, separate, shared or live.

        `kept` is a folder in it with the pieces of what crossed to an earlier scoring, which is to cross again. None if
        the endpoint cannot. Raises Conflicted while `execution`, the agent's own, still runs.
        """

    async def score(self, run_id: str, *, key: str) -> records.ScenarioRun:
        """Start the scoring of a run that is `running` or `failed` and whose devbox lives; returns at once.

        Raises Conflicted for any other run; a run that is scoring or scored may be answered as it is instead.
        """

    async def wait_scored(self, run_id: str) -> records.ScenarioRun:
        """Wait while the run is `scoring`; returns it in the state that follows."""

    async def complete(self, run_id: str) -> None:
        """Complete a run, with its score or without one; its devbox ends. Does nothing if the run has ended.

        Raises Conflicted while the run is scoring: its result would be lost.
        """

    async def cancel(self, run_id: str) -> None:
        """Cancel a run; its devbox ends. Does nothing if the run has ended."""


class Devboxes(Protocol):
    """Devboxes, from their boot to their end."""

    async def wait_running(
        self, devbox_id: str, *, preparing: Callable[[str], None] = lambda _: None
    ) -> records.Devbox:
        """Wait until the devbox runs. Raises DevboxFailed if it never will.

        `preparing` is called every now and then while the devbox waits for something before it boots, with what it is.
        Raises AgentSetupFailed if its install failed, and EnvironmentFailed if what it starts from did.
        """

    async def devbox(self, devbox_id: str) -> records.Devbox: ...

    async def list_devboxes(self) -> list[records.Devbox]:
        """Every devbox that has not ended."""

    async def shutdown(self, devbox_id: str) -> None:
        """End a devbox. Does nothing if it has ended, or if the endpoint does not know it."""

    async def devbox_log(self, devbox_id: str) -> str:
        """The devbox's own log, as text."""


class Executions(Protocol):
    """Commands and files in a devbox. What needs a living devbox raises DevboxLost if it has ended or is unknown."""

    async def execute(self, devbox_id: str, command: str, *, key: str) -> records.Execution:
        """Start a shell command; returns at once."""

    async def wait_completed(self, devbox_id: str, execution_id: str) -> records.Execution:
        """Wait until a command has ended. One that ended before its devbox did has its exit status for good."""

    def output(self, devbox_id: str, execution_id: str, offset: int = 0) -> AsyncGenerator[tuple[str, int], None]:
        """Yield what a command prints, from byte `offset` on: each piece of text with the offset behind it.

        The output of a command outlives its devbox.
        """

    async def kill(self, devbox_id: str, execution_id: str) -> None:
        """End a command with everything it started. Does nothing if it has ended."""

    def read_file(self, devbox_id: str, path: str) -> AsyncGenerator[bytes, None]:
        """Yield the content of a file in pieces, as they come. A file may be endless: stop when you have enough.

        Raises Missing or Conflicted if it cannot be read.
        """

    async def write_file(self, devbox_id: str, path: str, data: bytes) -> None: ...


class Resources(Runs, Devboxes, Protocol):
    """Everything that a sweep can leave behind on an endpoint."""


class Endpoint(Definitions, Resources, Executions, Protocol):
    """A Runloop-compatible service."""

    @property
    def token(self) -> str:
        """The bearer token that we use."""

    @property
    def answered_at(self) -> float:
        """The loop's time of the last answer; of the opening, before the first one."""

    async def ping(self) -> None:
        """Make a cheap call; returns when the endpoint answers."""

    def limit_rate(self, rate: float) -> None:
        """Send at most so many requests a second from now on."""

    async def features(self) -> frozenset[str]:
        """Its abilities beyond the published protocol, such as `installs`; none, for a foreign endpoint."""

    async def notices(self, *, is_online: bool) -> Sequence[str]:
        """Sentences that its users should read before they use its devboxes; none, for a foreign endpoint.

        With `is_online`, some of these devboxes are to reach the internet.
        """

    async def prepare(self, environments: Sequence[str], *, is_begun: bool = False) -> Sequence[records.Preparation]:
        """Begin to prepare environments before they are needed, unless that `is_begun`; returns how far they are.

        An endpoint that has no such thing returns none.
        """

    async def room_for(self, environments: Sequence[str]) -> records.RoomEstimate:
        """Estimate the room for the images of environments; an endpoint that has no such thing knows of no image."""

    async def at_work(self, sweep: str, client: str) -> list[str]:
        """Say that this client works on a sweep; returns the other clients that said so lately.

        An endpoint that does not know returns none.
        """

    async def leave(self, client: str) -> None:
        """Say that this client works no more."""

    async def check(self, needs: records.Needs) -> None:
        """Raise UsageError if devboxes cannot have what is needed; create what that takes (network policies)."""
