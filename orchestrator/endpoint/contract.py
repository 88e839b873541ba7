"""What the engine needs of an endpoint, in our words and records.

Every method raises the `WorldError`s of `errors.py` and nothing else, unless it says so. Short calls are tried again by
the gateway while the caller's deadline allows; a wait has no deadline of its own. A `key` makes a call safe to repeat:
the endpoint has its effect once.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Final, Protocol

from orchestrator.core.records import (
    Benchmark,
    BenchmarkRun,
    Devbox,
    Execution,
    Needs,
    Scenario,
    ScenarioRun,
    ScenarioSummary,
    Settlement,
)

#: The feature of an endpoint that can keep apart what is the agent's and what is the scorers'.
SETTLEMENTS: Final = "settlements"


class Endpoint(Protocol):
    """A Runloop-compatible service."""

    @property
    def url(self) -> str: ...

    @property
    def token(self) -> str:
        """Our key to it."""

    @property
    def answered_at(self) -> float:
        """When it answered last, by the loop's time; when it was opened, if it never did."""

    async def ping(self) -> None:
        """Ask for anything at all; returns when it answers."""

    async def features(self) -> frozenset[str]:
        """What it can do beside the published protocol, such as `installs`; nothing, for one that is not ours."""

    async def at_work(self, sweep: str, client: str) -> list[str]:
        """Say that this client is at work on a sweep; returns the others that said so lately, none where the endpoint
        does not know.
        """

    async def leave(self, client: str) -> None:
        """Say that this client is at work no more."""

    async def notices(self) -> Sequence[str]:
        """What is better known before its devboxes are used, as sentences; nothing, for one that is not ours."""

    async def secret_names(self) -> frozenset[str]:
        """The secrets that it keeps for us, by name; none where it keeps none."""

    async def benchmarks(self) -> list[Benchmark]:
        """Every benchmark there is for us, ours and public ones."""

    async def summaries(
        self,
        benchmark: Benchmark,
        at_most: int | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> list[ScenarioSummary]:
        """The benchmark's scenarios, in its order: all, or the first `at_most` of them.

        Those that cannot run say so, where the endpoint tells, and are missing elsewhere. What the globs leave out is
        listed too, and may say nothing but its name: it is not read.
        """

    async def scenario(self, scenario_id: str) -> Scenario: ...

    async def start_benchmark_run(
        self, benchmark_id: str, *, name: str, metadata: Mapping[str, str], key: str
    ) -> BenchmarkRun:
        """Ask for a benchmark run, once: as `start_run`."""

    async def benchmark_run(self, run_id: str) -> BenchmarkRun: ...

    async def list_benchmark_runs(
        self, *, benchmark: str | None = None, state: str | None = None
    ) -> list[BenchmarkRun]:
        """Every benchmark run, of one benchmark or in one state where these are given."""

    async def complete_benchmark_run(self, run_id: str) -> None:
        """End a benchmark run; what of it still runs is canceled. Raises nothing if it is over already."""

    async def cancel_benchmark_run(self, run_id: str) -> None:
        """Give a benchmark run up, with all that runs in it. Raises nothing if it is over already."""

    async def check(self, needs: Needs) -> None:
        """Raise UsageError if devboxes cannot have what is needed; what it takes is made ready."""

    async def start_run(
        self,
        scenario_id: str,
        *,
        benchmark_run_id: str | None,
        name: str,
        metadata: Mapping[str, str],
        keep_alive: int,
        needs: Needs,
        key: str,
    ) -> ScenarioRun:
        """Ask for a run and its devbox, once: not tried again here, because whoever waits then should hold nothing."""

    async def run(self, run_id: str) -> ScenarioRun: ...

    async def list_runs(
        self, *, benchmark_run: str | None = None, scenario: str | None = None, state: str | None = None
    ) -> list[ScenarioRun]:
        """Every scenario run, of one benchmark run, of one scenario, or in one state where these are given."""

    async def agent_begins(self, run_id: str) -> bool:
        """The agent of a run begins now: have noted how its devbox is. False where the endpoint cannot."""

    async def agent_ended(
        self, run_id: str, *, scoring: str, devbox: str | None = None, execution: str | None = None
    ) -> Settlement | None:
        """The agent of a run has ended: have its devbox settled for a scoring that is `declared`, `separate`, `shared`
        or `live`. None where the endpoint cannot. With the execution that the agent was, Conflicted while that goes on.
        """

    async def score(self, run_id: str, *, key: str) -> ScenarioRun:
        """Start the scoring; it goes on after the answer."""

    async def wait_scored(self, run_id: str) -> ScenarioRun:
        """Wait while the run is being scored; returns it in whatever state follows."""

    async def complete(self, run_id: str) -> None:
        """End a scored run; its devbox goes away. Raises nothing if it is over already."""

    async def cancel(self, run_id: str) -> None:
        """Give a run up; its devbox goes away. Raises nothing if it is over already."""

    async def wait_running(self, devbox_id: str) -> Devbox:
        """Wait until the devbox runs. Raises DevboxFailed if it never will, AgentSetupFailed if its install failed."""

    async def devbox(self, devbox_id: str) -> Devbox: ...

    async def list_devboxes(self) -> list[Devbox]:
        """Every devbox that lives."""

    async def shutdown(self, devbox_id: str) -> None:
        """End a devbox. Raises nothing if it is over already."""

    async def execute(self, devbox_id: str, command: str, *, key: str) -> Execution:
        """Start a shell command; returns at once."""

    async def wait_completed(self, devbox_id: str, execution_id: str) -> Execution:
        """Wait until a command has ended. Raises DevboxLost when its devbox is gone."""

    def output(self, devbox_id: str, execution_id: str, offset: int = 0) -> AsyncGenerator[tuple[str, int], None]:
        """What a command prints, from byte `offset` on: pieces of text, each with the offset behind it."""

    async def kill(self, devbox_id: str, execution_id: str) -> None: ...

    def read_file(self, devbox_id: str, path: str) -> AsyncGenerator[bytes, None]:
        """The content of a file in pieces, as they come: it may have no end, so whoever has enough stops.

        Raises Missing or Conflicted if it cannot be read.
        """

    async def write_file(self, devbox_id: str, path: str, data: bytes) -> None: ...

    async def devbox_log(self, devbox_id: str) -> str:
        """The devbox's own log, as text."""
