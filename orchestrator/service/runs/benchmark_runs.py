"""Benchmark runs: a snapshot of a benchmark's scenarios, and the scenario runs that were started in it.

The scenario ids are noted at the start: a benchmark may be changed while it runs, what is owed may not. What each run
adds to the whole is in `tally`.
"""

import sqlite3
from collections.abc import Mapping
from typing import Final

import anyio

from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.runs import benchmark_score
from orchestrator.service.runs.scenario_runs import ScenarioRuns
from orchestrator.service.runs.start_request import StartRequest, check_startable, secret_values
from orchestrator.service.runs.states import DONE, BenchmarkRunState, RunState
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

#: What ending a benchmark run makes of its scenario runs: a result that is there is kept, a failure stays one.
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
        before = await self._store.read(lambda db: answered(db, key))
        if before is not None:
            return before
        benchmark = await self._definitions.benchmark(request.definition_id)
        check_startable("Benchmark", benchmark, request.profile)
        secret_values(request.profile, self._secrets)
        run = {
            "id": BENCHMARK_RUNS.new_id(),
            "benchmark_id": benchmark["id"],
            "state": str(BenchmarkRunState.RUNNING),
            "start_time_ms": now_ms(),
            **request.view(request.profile),
            "_scenario_ids": benchmark["scenarioIds"],
            "_profile": request.profile.document(),
        }

        def insert(db: sqlite3.Connection) -> Document:
            BENCHMARK_RUNS.insert(db, run)
            return _whole_view(db, run)

        answer, _ = await self._store.write(lambda db: once(db, key, lambda: insert(db)))
        return answer

    async def retrieve(self, run_id: str) -> Document:
        """The view, with `pending_scenarios` and `scenario_runs`. Raises NotFound."""
        return await self._store.read(lambda db: _whole_view(db, BENCHMARK_RUNS.get(db, run_id)))

    async def need(self, run_id: str) -> None:
        """Raises NotFound if there is no such run."""
        await self._store.read(lambda db: BENCHMARK_RUNS.get(db, run_id))

    async def page(self, filters: Filters, query: ListQuery) -> Page:
        """Benchmark runs, newest first, without what is pending. Raises NotFound for an unknown `starting_after`."""
        return await self._store.read(lambda db: BENCHMARK_RUNS.page(db, filters, query))

    async def complete(self, run_id: str) -> Document:
        """Complete the scored scenario runs, cancel the others that live, and end the run. Idempotent.

        Every devbox is shut down. Raises NotFound, and BadRequest for a canceled run.
        """
        return await self._end(run_id, BenchmarkRunState.COMPLETED)

    async def cancel(self, run_id: str) -> Document:
        """As `complete`, but the run is canceled. Idempotent. Raises NotFound, and BadRequest for a completed run."""
        return await self._end(run_id, BenchmarkRunState.CANCELED)

    async def _end(self, run_id: str, state: BenchmarkRunState) -> Document:
        def change(db: sqlite3.Connection) -> tuple[Document, list[Document]]:
            run = BENCHMARK_RUNS.get(db, run_id)
            ended = self._end_scenario_runs(db, run_id)
            if run["state"] == state:
                benchmark_score.settle(db, run_id)
            else:
                benchmark_score.end(db, run, state)
            return _whole_view(db, BENCHMARK_RUNS.get(db, run_id)), ended

        with anyio.CancelScope(shield=True):
            answer, ended = await self._store.write(change)
            for scenario_run in ended:
                self._scenario_runs.ended(scenario_run)
        return answer

    def _end_scenario_runs(self, db: sqlite3.Connection, run_id: str) -> list[Document]:
        ended = []
        for entry in benchmark_score.entries(db, run_id):
            if target := _ENDS.get(entry.state):
                scenario_run = SCENARIO_RUNS.get(db, entry.id)
                self._scenario_runs.end_in(db, scenario_run, target)
                ended.append(scenario_run)
        return ended


def _whole_view(db: sqlite3.Connection, run: Document) -> Document:
    """The view of one run: with what clients before 1.0 read of it, in their spelling."""
    done = [SCENARIO_RUNS.get(db, entry.id) for entry in benchmark_score.entries(db, run["id"]) if entry.state in DONE]
    return {
        **view(run),
        "pending_scenarios": benchmark_score.pending(db, run),
        "scenario_runs": [_old_view(each) for each in done if "scoring_contract_result" in each],
    }


def _old_view(scenario_run: Document) -> Document:
    """A run with its result, but for the scorers' output: hundreds of them would be megabytes."""
    result = scenario_run["scoring_contract_result"]
    functions = [function | {"output": ""} for function in result["scoring_function_results"]]
    return {
        "scenario_id": scenario_run["scenario_id"],
        "scenarioRunId": scenario_run["id"],
        "scoringResult": result | {"scoring_function_results": functions},
    }
