"""Benchmark runs: a snapshot of a benchmark's scenarios, and the scenario runs that were started in it.

The scenario ids are noted at the start: a benchmark may be changed while it runs, what is owed may not. The sum of the
runs is in `states`.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

import anyio
from msgspec import field
from msgspec.structs import asdict, replace

from orchestrator.core.protocol import RUN_RESULT, BenchmarkRunState, RunState
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.records import BenchmarkRunRecord, ContractResult, Record, ScenarioRunRecord
from orchestrator.service.runs import states
from orchestrator.service.runs.scenario_runs import ScenarioRuns
from orchestrator.service.runs.start_request import StartRequest, benchmark_of, check_startable, secret_values
from orchestrator.service.store import (
    BENCHMARK_RUNS,
    SCENARIO_RUNS,
    Filters,
    ListQuery,
    Page,
    Store,
    answered,
    now_ms,
)

#: States that ending a benchmark run makes of its scenario runs': a result that is there is kept, a failure stays one.
_ENDS: Final[Mapping[RunState, RunState]] = {
    RunState.RUNNING: RunState.CANCELED,
    RunState.SCORING: RunState.CANCELED,
    RunState.SCORED: RunState.COMPLETED,
    RunState.FAILED: RunState.FAILED,
}


class OldRunView(Record, frozen=True, kw_only=True):
    """A scenario run with its result, in the spelling of clients before 1.0."""

    scenario_id: str
    scenario_run_id: str = field(name="scenarioRunId")
    scoring_result: ContractResult = field(name="scoringResult")


class BenchmarkRunView(BenchmarkRunRecord, frozen=True, kw_only=True):
    """A benchmark run as the wire shows one by itself: with its scenarios that have no run that is done or at work."""

    pending_scenarios: Sequence[str]
    scenario_runs: Sequence[OldRunView]


class BenchmarkRuns:
    def __init__(
        self, *, store: Store, definitions: Definitions, scenario_runs: ScenarioRuns, secrets: Mapping[str, str]
    ) -> None:
        self._store = store
        self._definitions = definitions
        self._scenario_runs = scenario_runs
        self._secrets = secrets

    async def start(self, request: StartRequest, key: str | None) -> BenchmarkRunView:
        """Start a run of a benchmark, once for each key. Raises NotFound, and BadRequest naming what is missing."""
        before = await self._store.read(lambda db: answered(db, key, BenchmarkRunView))
        if before is not None:
            return before
        benchmark = await benchmark_of(self._definitions, request.definition_id)
        check_startable("Benchmark", benchmark, request.profile)
        secret_values(request.profile, self._secrets)
        run = BenchmarkRunRecord(
            id=BENCHMARK_RUNS.new_id(),
            benchmark_id=benchmark.id,
            state=BenchmarkRunState.RUNNING,
            start_time_ms=now_ms(),
            **request.fields(request.profile),
            scenario_ids=benchmark.scenario_ids,
            profile=request.profile,
        )

        def insert(db: sqlite3.Connection) -> BenchmarkRunView:
            BENCHMARK_RUNS.insert(db, run)
            return _view(db, run)

        answer, _ = await self._store.once(key, BenchmarkRunView, insert)
        return answer

    async def retrieve(self, run_id: str) -> BenchmarkRunView:
        """Raises NotFound."""
        return await self._store.read(lambda db: _view(db, BENCHMARK_RUNS.get(db, run_id)))

    async def need(self, run_id: str) -> None:
        """Raises NotFound if there is no such run."""
        await self._store.read(lambda db: BENCHMARK_RUNS.get(db, run_id))

    async def page(self, filters: Filters, query: ListQuery) -> Page[BenchmarkRunRecord]:
        """Benchmark runs, newest first, without what is pending. Raises NotFound for an unknown `starting_after`."""
        return await self._store.read(lambda db: BENCHMARK_RUNS.page(db, filters, query))

    async def complete(self, run_id: str) -> BenchmarkRunView:
        """Complete the scored scenario runs, cancel the others that live, and end the run. Idempotent.

        Every devbox is shut down. Raises NotFound, and BadRequest for a canceled run.
        """
        return await self._end(run_id, BenchmarkRunState.COMPLETED)

    async def cancel(self, run_id: str) -> BenchmarkRunView:
        """End a run like `complete`, but canceled. Idempotent. Raises NotFound, and BadRequest for a completed run."""
        return await self._end(run_id, BenchmarkRunState.CANCELED)

    async def _end(self, run_id: str, state: BenchmarkRunState) -> BenchmarkRunView:
        def change(db: sqlite3.Connection) -> tuple[BenchmarkRunView, list[ScenarioRunRecord]]:
            run = BENCHMARK_RUNS.get(db, run_id)
            ended = [
                self._scenario_runs.end_in(db, SCENARIO_RUNS.get(db, each.id), target)
                for each in states.summaries(db, run_id)
                if (target := _ENDS.get(each.state))
            ]
            if run.state is state:
                states.settle_benchmark_run(db, run_id)
            else:
                states.end_benchmark_run(db, run, state)
            return _view(db, BENCHMARK_RUNS.get(db, run_id)), ended

        with anyio.CancelScope(shield=True):
            answer, ended = await self._store.write(change)
            for scenario_run in ended:
                self._scenario_runs.ended(scenario_run)
        return answer


def _view(db: sqlite3.Connection, run: BenchmarkRunRecord) -> BenchmarkRunView:
    """Make the view of one run. Results are without the scorers' output: for hundreds of runs it would be megabytes."""
    old_views = []
    for each in states.summaries(db, run.id):
        scenario_run = SCENARIO_RUNS.get(db, each.id) if each.state in RUN_RESULT else None
        if scenario_run is None or scenario_run.scoring_contract_result is None:
            continue
        result = scenario_run.scoring_contract_result
        short = [replace(function, output="") for function in result.scoring_function_results]
        old_views.append(
            OldRunView(
                scenario_id=each.scenario_id,
                scenario_run_id=each.id,
                scoring_result=replace(result, scoring_function_results=short),
            )
        )
    return BenchmarkRunView(**asdict(run), pending_scenarios=states.pending(db, run), scenario_runs=old_views)
