"""The sum of a benchmark run's scenario runs: its score, what is pending, and whether it is over.

Everything here runs inside a transaction of the caller. An index that holds every value asked for answers without
opening the runs' documents, which carry scorer output: 5,000 runs in 9 ms instead of 170. Counters kept on the
benchmark run would be cheaper still, but could be wrong.
"""

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from orchestrator.service.records import BenchmarkRunRecord, BenchmarkRunStatus, RunState
from orchestrator.service.runs.states import ALIVE, DONE, moved_benchmark_run
from orchestrator.service.store import BENCHMARK_RUNS

_INDEX: Final = (
    "CREATE INDEX IF NOT EXISTS scenario_runs_tally ON scenario_runs (json_extract(doc, '$.benchmark_run_id'), "
    "json_extract(doc, '$.scenario_id'), json_extract(doc, '$.state'), "
    "json_extract(doc, '$.scoring_contract_result.score'), id)"
)
_SELECT: Final = (
    "SELECT id, json_extract(doc, '$.scenario_id'), json_extract(doc, '$.state'), "
    "json_extract(doc, '$.scoring_contract_result.score') FROM scenario_runs INDEXED BY scenario_runs_tally "
    "WHERE json_extract(doc, '$.benchmark_run_id') = ?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A scenario run, as far as its benchmark run needs it."""

    id: str
    scenario_id: str
    state: RunState
    score: float | None


def prepare(db: sqlite3.Connection) -> None:
    """Make the index, once, before anything else here is used."""
    db.execute(_INDEX)


def entries(db: sqlite3.Connection, benchmark_run_id: str) -> list[RunSummary]:
    """Return all scenario runs of a benchmark run."""
    return [
        RunSummary(id=identity, scenario_id=scenario_id, state=RunState(state), score=score)
        for identity, scenario_id, state, score in db.execute(_SELECT, (benchmark_run_id,))
    ]


def score(runs: Collection[RunSummary]) -> float | None:
    """Sum of scenario scores / number of scenario runs; None without a run.

    Source of the rule: the published description of `BenchmarkRunView.score`. A run without a result counts as 0.
    """
    if not runs:
        return None
    return sum(run.score or 0.0 for run in runs if run.state in DONE) / len(runs)


def pending(db: sqlite3.Connection, run: BenchmarkRunRecord) -> list[str]:
    """Return the scenario ids noted at the start, minus those with a run that is scored, completed or alive."""
    taken = {each.scenario_id for each in entries(db, run.id) if each.state in DONE | ALIVE}
    return [scenario_id for scenario_id in run.scenario_ids if scenario_id not in taken]


def settle(db: sqlite3.Connection, benchmark_run_id: str | None) -> None:
    """After a scenario run moved: complete its benchmark run if every scenario is done; no devbox is touched.

    The score of a benchmark run that is over follows runs that still moved after its end.
    """
    run = BENCHMARK_RUNS.find(db, benchmark_run_id) if benchmark_run_id else None
    if run is None:
        return
    runs = entries(db, run.id)
    if run.state is BenchmarkRunStatus.RUNNING:
        if not {each.scenario_id for each in runs if each.state in DONE}.issuperset(run.scenario_ids):
            return
        run = moved_benchmark_run(run, BenchmarkRunStatus.COMPLETED)
    BENCHMARK_RUNS.put(db, replace(run, score=score(runs)))


def end(db: sqlite3.Connection, run: BenchmarkRunRecord, state: BenchmarkRunStatus) -> None:
    """End a benchmark run whose scenario runs have been ended, and note its score."""
    BENCHMARK_RUNS.put(db, replace(moved_benchmark_run(run, state), score=score(entries(db, run.id))))
