"""The state machines of runs, and what scenario runs add up to: pure functions and a database in memory."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from orchestrator.service.errors import BadRequest
from orchestrator.service.runs import benchmark_score
from orchestrator.service.runs.states import (
    ALIVE,
    BENCHMARK_RUN_MOVES,
    DONE,
    RUN_MOVES,
    BenchmarkRunState,
    RunState,
    move_benchmark_run,
    move_run,
)
from orchestrator.service.store import BENCHMARK_RUNS, TABLES, Document
from orchestrator.service.store import SCENARIO_RUNS as RUNS


def run_document(
    state: str = "running", *, scenario: str = "scn_1", number: int = 1, score: float | None = None
) -> Document:
    result = {} if score is None else {"scoring_contract_result": {"score": score, "scoring_function_results": []}}
    return {
        "id": f"scr_{number}",
        "scenario_id": scenario,
        "benchmark_run_id": "bmr_1",
        "devbox_id": f"dbx_{number}",
        "metadata": {},
        "state": state,
        "start_time_ms": 1_000,
        **result,
    }


def benchmark_run_document(*scenarios: str, state: str = "running") -> Document:
    return {"id": "bmr_1", "metadata": {}, "start_time_ms": 1_000, "state": state, "_scenario_ids": list(scenarios)}


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for table in TABLES:
            table.create(connection)
        benchmark_score.prepare(connection)
        yield connection


LEGAL = [(source, target) for source, targets in RUN_MOVES.items() for target in sorted(targets)]
ILLEGAL = [(source, target) for source in RunState for target in RunState if target not in RUN_MOVES[source]]


def test_every_state_has_its_moves() -> None:
    """No state of a run is forgotten in the table of its moves."""
    assert set(RUN_MOVES) == set(RunState)
    assert set(BENCHMARK_RUN_MOVES) == set(BenchmarkRunState)


@pytest.mark.parametrize(("source", "target"), LEGAL)
def test_a_legal_move_is_made(source: RunState, target: RunState) -> None:
    run = run_document(source)
    move_run(run, target)
    assert run["state"] == target


@pytest.mark.parametrize(("source", "target"), ILLEGAL)
def test_an_illegal_move_names_the_state_and_changes_nothing(source: RunState, target: RunState) -> None:
    run = run_document(source)
    with pytest.raises(BadRequest, match=f"scr_1 is {source} and cannot become {target}"):
        move_run(run, target)
    assert run == run_document(source)


def test_the_clock_stops_when_the_score_is_there_and_not_again() -> None:
    """Between scored and completed a run only waits: its duration is that of the work."""
    run = run_document()
    move_run(run, RunState.SCORING)
    assert "duration_ms" not in run
    move_run(run, RunState.SCORED)
    run["duration_ms"] = 7
    move_run(run, RunState.COMPLETED)
    assert run["duration_ms"] == 7


def test_scoring_a_failed_run_again_starts_its_clock_again() -> None:
    run = run_document("failed") | {"duration_ms": 7}
    move_run(run, RunState.SCORING)
    assert "duration_ms" not in run


def test_a_benchmark_run_ends_once() -> None:
    run = benchmark_run_document()
    move_benchmark_run(run, BenchmarkRunState.COMPLETED)
    assert run["duration_ms"] >= 0
    with pytest.raises(BadRequest, match="bmr_1 is completed and cannot become canceled"):
        move_benchmark_run(run, BenchmarkRunState.CANCELED)


def test_done_and_alive_are_apart() -> None:
    assert not DONE & ALIVE


def test_pending_are_the_scenarios_without_a_run_that_is_done_or_alive(db: sqlite3.Connection) -> None:
    benchmark_run = benchmark_run_document(*(f"scn_{state}" for state in RunState), "scn_none")
    for number, state in enumerate(RunState):
        RUNS.insert(db, run_document(state, scenario=f"scn_{state}", number=number))
    assert benchmark_score.pending(db, benchmark_run) == ["scn_canceled", "scn_timeout", "scn_failed", "scn_none"]


def test_a_benchmark_run_completes_when_every_scenario_is_scored_or_completed(db: sqlite3.Connection) -> None:
    BENCHMARK_RUNS.insert(db, benchmark_run_document("scn_1", "scn_2"))
    RUNS.insert(db, run_document("scored", number=1, score=1.0))
    RUNS.insert(db, run_document("failed", number=2, scenario="scn_2"))
    benchmark_score.settle(db, "bmr_1")
    assert BENCHMARK_RUNS.get(db, "bmr_1")["state"] == "running"
    RUNS.insert(db, run_document("completed", number=3, scenario="scn_2", score=0.5))
    benchmark_score.settle(db, "bmr_1")
    ended = BENCHMARK_RUNS.get(db, "bmr_1")
    assert ended["state"] == "completed"
    assert ended["score"] == pytest.approx(1.5 / 3), "the failed run counts in the number of runs"


def test_a_run_scored_after_the_end_still_counts(db: sqlite3.Connection) -> None:
    BENCHMARK_RUNS.insert(db, benchmark_run_document("scn_1"))
    RUNS.insert(db, run_document("scored", number=1, score=1.0))
    second = run_document("running", number=2)
    RUNS.insert(db, second)
    benchmark_score.settle(db, "bmr_1")
    assert BENCHMARK_RUNS.get(db, "bmr_1")["score"] == pytest.approx(0.5)
    RUNS.put(db, run_document("scored", number=2, score=1.0))
    benchmark_score.settle(db, "bmr_1")
    assert BENCHMARK_RUNS.get(db, "bmr_1")["score"] == pytest.approx(1.0)


def test_without_runs_there_is_no_score(db: sqlite3.Connection) -> None:
    BENCHMARK_RUNS.insert(db, benchmark_run_document("scn_1"))
    benchmark_score.end(db, BENCHMARK_RUNS.get(db, "bmr_1"), BenchmarkRunState.COMPLETED)
    assert "score" not in BENCHMARK_RUNS.get(db, "bmr_1")


def test_a_run_of_no_benchmark_settles_nothing(db: sqlite3.Connection) -> None:
    benchmark_score.settle(db, None)
    benchmark_score.settle(db, "bmr_unknown")


def test_the_tally_reads_no_documents(db: sqlite3.Connection) -> None:
    """The index answers by itself, or a benchmark of thousands would be read again with each score."""
    plan = db.execute(f"EXPLAIN QUERY PLAN {benchmark_score._SELECT}", ("bmr_1",)).fetchall()
    assert any("scenario_runs_tally" in row[-1] for row in plan)
