"""What the scenario runs of a benchmark run add up to: its score, what is pending, and whether it is over.

Everything here runs inside a transaction of the caller. An index that holds every value asked for answers without
opening the runs' documents, which carry scorer output: 5,000 runs in 9 ms instead of 170. Counters kept on the
benchmark run would be cheaper still, but could be wrong.
"""

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from orchestrator.service.runs.states import ALIVE, DONE, BenchmarkRunState, RunState, move_benchmark_run
from orchestrator.service.store import BENCHMARK_RUNS, Document

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
class Entry:
    """One scenario run, as far as its benchmark run cares."""

    id: str
    scenario_id: str
    state: RunState
    score: float | None


def prepare(db: sqlite3.Connection) -> None:
    """Make the index, once, before anything else here is used."""
    db.execute(_INDEX)


def entries(db: sqlite3.Connection, benchmark_run_id: str) -> list[Entry]:
    """All scenario runs of a benchmark run."""
    return [
        Entry(id=identity, scenario_id=scenario_id, state=RunState(state), score=score)
        for identity, scenario_id, state, score in db.execute(_SELECT, (benchmark_run_id,))
    ]


def score(runs: Collection[Entry]) -> float | None:
    """Sum of scenario scores / number of scenario runs; None without a run.

    Source of the rule: the published description of `BenchmarkRunView.score`. A run without a result counts as 0.
    """
    if not runs:
        return None
    return sum(run.score or 0.0 for run in runs if run.state in DONE) / len(runs)


def pending(db: sqlite3.Connection, benchmark_run: Document) -> list[str]:
    """The scenario ids noted at the start, minus those with a run that is scored, completed or alive."""
    taken = {run.scenario_id for run in entries(db, benchmark_run["id"]) if run.state in DONE | ALIVE}
    return [scenario_id for scenario_id in benchmark_run["_scenario_ids"] if scenario_id not in taken]


def settle(db: sqlite3.Connection, benchmark_run_id: str | None) -> None:
    """After a scenario run moved: complete its benchmark run if every scenario is done; no devbox is touched.

    The score of a benchmark run that is over follows runs that still moved after its end.
    """
    benchmark_run = BENCHMARK_RUNS.find(db, benchmark_run_id) if benchmark_run_id else None
    if benchmark_run is None:
        return
    runs = entries(db, benchmark_run["id"])
    if benchmark_run["state"] == BenchmarkRunState.RUNNING:
        done = {run.scenario_id for run in runs if run.state in DONE}
        if not done.issuperset(benchmark_run["_scenario_ids"]):
            return
        move_benchmark_run(benchmark_run, BenchmarkRunState.COMPLETED)
    _put_score(db, benchmark_run, runs)


def end(db: sqlite3.Connection, benchmark_run: Document, state: BenchmarkRunState) -> None:
    """End a benchmark run whose scenario runs have been ended, and note its score."""
    move_benchmark_run(benchmark_run, state)
    _put_score(db, benchmark_run, entries(db, benchmark_run["id"]))


def _put_score(db: sqlite3.Connection, benchmark_run: Document, runs: Collection[Entry]) -> None:
    total = score(runs)
    if total is not None:
        benchmark_run["score"] = total
    BENCHMARK_RUNS.put(db, benchmark_run)
