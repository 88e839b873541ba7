"""Benchmark runs: a snapshot of a benchmark's scenarios, and the scenario runs that were started in it.

The scenario ids are noted at the start: a benchmark may be changed while it runs, what is owed may not. The sum of the
runs is in `benchmark_score`.
"""

import sqlite3
from collections.abc import Mapping
from typing import Final

import anyio
from msgspec.structs import replace

from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.records import BenchmarkRunRecord, BenchmarkRunStatus, RunState, ScenarioRunRecord
from orchestrator.service.runs import benchmark_score
from orchestrator.service.runs.scenario_runs import ScenarioRuns
from orchestrator.service.runs.start_request import StartRequest, benchmark_of, check_startable, secret_values
from orchestrator.service.runs.states import DONE
from orchestrator.service.serialization import view
from orchestrator.service.store import (
    BENCHMARK_RUNS,
    SCENARIO_RUNS,
    Document,
    Filters,
    ListQuery,
    Page,
    Store,
    answered,
    now_ms,
    once,
)

#: States that ending a benchmark run makes of its scenario runs': a result that is there is kept, a failure stays one.
_ENDS: Final[Mapping[RunState, RunState]] = {
    RunState.RUNNING: RunState.CANCELED,
    RunState.SCORING: RunState.CANCELED,
    RunState.SCORED: RunState.COMPLETED,
    RunState.FAILED: RunState.FAILED,
}


class BenchmarkRuns:
    def __init__(
        self, *, store: Store, definitions: Definitions, scenario_runs: ScenarioRuns, secrets: Mapping[str, str]
    ) -> None:
        self._store = store
        self._definitions = definitions
        self._scenario_runs = scenario_runs
        self._secrets = secrets

    async def start(self, request: StartRequest, key: str | None) -> Document:
        """Start a run of a benchmark, once for each key. Raises NotFound, and BadRequest naming what is missing."""
        before = await self._store.read(lambda db: answered(db, key, Document))
        if before is not None:
            return before
        benchmark = await benchmark_of(self._definitions, request.definition_id)
        check_startable("Benchmark", benchmark, request.profile)
        secret_values(request.profile, self._secrets)
        run = BenchmarkRunRecord(
            id=BENCHMARK_RUNS.new_id(),
            benchmark_id=benchmark.id,
            state=BenchmarkRunStatus.RUNNING,
            start_time_ms=now_ms(),
            **request.fields(request.profile),
            scenario_ids=benchmark.scenario_ids,
            profile=request.profile,
        )

        def insert(db: sqlite3.Connection) -> Document:
            BENCHMARK_RUNS.insert(db, run)
            return _whole_view(db, run)

        answer, _ = await self._store.write(lambda db: once(db, key, Document, lambda: insert(db)))
        return answer

    async def retrieve(self, run_id: str) -> Document:
        """Return the view, with `pending_scenarios` and `scenario_runs`. Raises NotFound."""
        return await self._store.read(lambda db: _whole_view(db, BENCHMARK_RUNS.get(db, run_id)))

    async def need(self, run_id: str) -> None:
        """Raises NotFound if there is no such run."""
        await self._store.read(lambda db: BENCHMARK_RUNS.get(db, run_id))

    async def page(self, filters: Filters, query: ListQuery) -> Page[BenchmarkRunRecord]:
        """Benchmark runs, newest first, without what is pending. Raises NotFound for an unknown `starting_after`."""
        return await self._store.read(lambda db: BENCHMARK_RUNS.page(db, filters, query))

    async def complete(self, run_id: str) -> Document:
        """Complete the scored scenario runs, cancel the others that live, and end the run. Idempotent.

        Every devbox is shut down. Raises NotFound, and BadRequest for a canceled run.
        """
        return await self._end(run_id, BenchmarkRunStatus.COMPLETED)

    async def cancel(self, run_id: str) -> Document:
        """As `complete`, but the run is canceled. Idempotent. Raises NotFound, and BadRequest for a completed run."""
        return await self._end(run_id, BenchmarkRunStatus.CANCELED)

    async def _end(self, run_id: str, state: BenchmarkRunStatus) -> Document:
        def change(db: sqlite3.Connection) -> tuple[Document, list[ScenarioRunRecord]]:
            run = BENCHMARK_RUNS.get(db, run_id)
            ended = [
                self._scenario_runs.end_in(db, SCENARIO_RUNS.get(db, each.id), target)
                for each in benchmark_score.entries(db, run_id)
                if (target := _ENDS.get(each.state))
            ]
            if run.state is state:
                benchmark_score.settle(db, run_id)
            else:
                benchmark_score.end(db, run, state)
            return _whole_view(db, BENCHMARK_RUNS.get(db, run_id)), ended

        with anyio.CancelScope(shield=True):
            answer, ended = await self._store.write(change)
            for scenario_run in ended:
                self._scenario_runs.ended(scenario_run)
        return answer


def _whole_view(db: sqlite3.Connection, run: BenchmarkRunRecord) -> Document:
    """The view of one run: with the keys that clients before 1.0 read of it, in their spelling.

    Scenario runs are shown with their result, but without the scorers' output: hundreds of them would be megabytes.
    """
    old_views = []
    for entry in benchmark_score.entries(db, run.id):
        scenario_run = SCENARIO_RUNS.get(db, entry.id) if entry.state in DONE else None
        if scenario_run is None or scenario_run.scoring_contract_result is None:
            continue
        result = scenario_run.scoring_contract_result
        short = [replace(each, output="") for each in result.scoring_function_results]
        old_views.append(
            {
                "scenario_id": scenario_run.scenario_id,
                "scenarioRunId": scenario_run.id,
                "scoringResult": view(replace(result, scoring_function_results=short)),
            }
        )
    return {**view(run), "pending_scenarios": benchmark_score.pending(db, run), "scenario_runs": old_views}
