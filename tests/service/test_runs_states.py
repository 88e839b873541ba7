"""The state machines of runs, and what scenario runs add up to: pure functions and a database in memory."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from msgspec.structs import replace

from orchestrator.core.protocol import RUN_RESULT, BenchmarkRunState, RewardStrategy, RunState
from orchestrator.service.errors import BadRequest
from orchestrator.service.records import BenchmarkRunRecord, ContractResult, ScenarioRunRecord, StepTerms
from orchestrator.service.runs import states
from orchestrator.service.runs.states import BENCHMARK_RUN_MOVES, RUN_MOVES, moved_benchmark_run, moved_run
from orchestrator.service.store import BENCHMARK_RUNS, TABLES
from orchestrator.service.store import SCENARIO_RUNS as RUNS


def scenario_run(
    state: str = "running", *, scenario: str = "scn_1", number: int = 1, score: float | None = None
) -> ScenarioRunRecord:
    return ScenarioRunRecord(
        id=f"scr_{number}",
        scenario_id=scenario,
        benchmark_run_id="bmr_1",
        devbox_id=f"dbx_{number}",
        metadata={},
        state=RunState(state),
        start_time_ms=1_000,
        scoring_contract_result=None if score is None else ContractResult(score=score, scoring_function_results=[]),
    )


def benchmark_run(*scenarios: str) -> BenchmarkRunRecord:
    return BenchmarkRunRecord(
        id="bmr_1",
        benchmark_id="bmd_1",
        metadata={},
        start_time_ms=1_000,
        state=BenchmarkRunState.RUNNING,
        scenario_ids=scenarios,
    )


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for table in TABLES:
            table.create(connection)
        yield connection


def of_steps(
    *names: str, strategy: RewardStrategy = RewardStrategy.MEAN, least: float | None = None
) -> ScenarioRunRecord:
    terms = [StepTerms(name=name, min_reward={} if least is None else {"reward": least}) for name in names]
    return replace(scenario_run("scoring"), planned=terms, strategy=strategy)


def judged(run: ScenarioRunRecord, *scores: float | None) -> ScenarioRunRecord:
    """Score one step after another: what each scorer says, which gives no rewards by name."""
    for score in scores:
        result = None if score is None else ContractResult(score=score, scoring_function_results=[])
        run = states.judged(replace(run, state=RunState.SCORING), result)
    return run


def test_a_run_of_several_steps_is_scored_when_none_follows() -> None:
    run = judged(of_steps("one", "two", "three"), 1.0, None)
    assert (run.state, run.scoring_contract_result) == (RunState.RUNNING, None)
    run = judged(run, 0.5)
    assert run.scoring_contract_result is not None
    assert (run.state, run.scoring_contract_result.score, run.rewards) == (RunState.SCORED, 0.75, {"reward": 0.75})
    assert [step.name for step in run.steps or ()] == ["one", "two", "three"]


def test_a_score_without_named_rewards_is_the_reward_that_lets_the_next_step_begin() -> None:
    assert judged(of_steps("one", "two", least=0.5), 0.5).state is RunState.RUNNING
    assert judged(of_steps("one", "two", least=0.5), 0.4).state is RunState.SCORED


@pytest.mark.parametrize(("strategy", "score"), [(RewardStrategy.MEAN, 0.25), (RewardStrategy.FINAL, 0.0)])
def test_who_breaks_the_devbox_has_solved_none_of_the_steps_that_were_left(
    strategy: RewardStrategy, score: float
) -> None:
    run = judged(of_steps("one", "two", "three", "four", strategy=strategy), 1.0)
    run = judged(states.with_broken(run, ["out of disk"]), 0.0)
    assert run.scoring_contract_result is not None
    assert (run.state, run.scoring_contract_result.score) == (RunState.SCORED, score)


LEGAL = [(source, target) for source, targets in RUN_MOVES.items() for target in sorted(targets)]
ILLEGAL = [(source, target) for source in RunState for target in RunState if target not in RUN_MOVES[source]]


def test_every_state_has_its_moves() -> None:
    """No state of a run is forgotten in the table of its moves."""
    assert set(RUN_MOVES) == set(RunState)
    assert set(BENCHMARK_RUN_MOVES) == set(BenchmarkRunState)


@pytest.mark.parametrize(("source", "target"), LEGAL)
def test_a_legal_move_is_made(source: RunState, target: RunState) -> None:
    assert moved_run(scenario_run(source), target).state == target


@pytest.mark.parametrize(("source", "target"), ILLEGAL)
def test_an_illegal_move_names_the_state_and_changes_nothing(source: RunState, target: RunState) -> None:
    run = scenario_run(source)
    with pytest.raises(BadRequest, match=f"scr_1 is {source} and cannot become {target}"):
        moved_run(run, target)
    assert run == scenario_run(source)


def test_the_clock_stops_when_the_score_is_there_and_not_again() -> None:
    """Between scored and completed a run only waits: its duration is that of the work."""
    scoring = moved_run(scenario_run(), RunState.SCORING)
    assert scoring.duration_ms is None
    scored = moved_run(scoring, RunState.SCORED)
    assert scored.duration_ms is not None
    assert moved_run(replace(scored, duration_ms=7), RunState.COMPLETED).duration_ms == 7


def test_scoring_a_failed_run_again_starts_its_clock_again() -> None:
    run = replace(scenario_run("failed"), duration_ms=7)
    assert moved_run(run, RunState.SCORING).duration_ms is None


def test_a_benchmark_run_ends_once() -> None:
    run = moved_benchmark_run(benchmark_run(), BenchmarkRunState.COMPLETED)
    assert (run.duration_ms or 0) >= 1
    with pytest.raises(BadRequest, match="bmr_1 is completed and cannot become canceled"):
        moved_benchmark_run(run, BenchmarkRunState.CANCELED)


def test_runs_with_a_result_are_not_at_work() -> None:
    assert not RUN_RESULT & states.AT_WORK


def test_pending_are_the_scenarios_without_a_run_that_is_done_or_alive(db: sqlite3.Connection) -> None:
    whole = benchmark_run(*(f"scn_{state}" for state in RunState), "scn_none")
    for number, state in enumerate(RunState):
        RUNS.insert(db, scenario_run(state, scenario=f"scn_{state}", number=number))
    assert states.pending(db, whole) == ["scn_canceled", "scn_timeout", "scn_failed", "scn_none"]


def test_a_benchmark_run_completes_when_every_scenario_is_scored_or_completed(db: sqlite3.Connection) -> None:
    BENCHMARK_RUNS.insert(db, benchmark_run("scn_1", "scn_2"))
    RUNS.insert(db, scenario_run("scored", number=1, score=1.0))
    RUNS.insert(db, scenario_run("failed", number=2, scenario="scn_2"))
    states.settle_benchmark_run(db, "bmr_1")
    assert BENCHMARK_RUNS.get(db, "bmr_1").state == "running"
    RUNS.insert(db, scenario_run("completed", number=3, scenario="scn_2", score=0.5))
    states.settle_benchmark_run(db, "bmr_1")
    ended = BENCHMARK_RUNS.get(db, "bmr_1")
    assert ended.state == "completed"
    assert ended.score == pytest.approx(1.5 / 3), "the failed run counts in the number of runs"


def test_a_run_scored_after_the_end_still_counts(db: sqlite3.Connection) -> None:
    BENCHMARK_RUNS.insert(db, benchmark_run("scn_1"))
    RUNS.insert(db, scenario_run("scored", number=1, score=1.0))
    second = scenario_run("running", number=2)
    RUNS.insert(db, second)
    states.settle_benchmark_run(db, "bmr_1")
    assert BENCHMARK_RUNS.get(db, "bmr_1").score == pytest.approx(0.5)
    RUNS.put(db, scenario_run("scored", number=2, score=1.0))
    states.settle_benchmark_run(db, "bmr_1")
    assert BENCHMARK_RUNS.get(db, "bmr_1").score == pytest.approx(1.0)


def test_without_runs_there_is_no_score(db: sqlite3.Connection) -> None:
    BENCHMARK_RUNS.insert(db, benchmark_run("scn_1"))
    states.end_benchmark_run(db, BENCHMARK_RUNS.get(db, "bmr_1"), BenchmarkRunState.COMPLETED)
    assert BENCHMARK_RUNS.get(db, "bmr_1").score is None


def test_a_run_of_no_benchmark_settles_nothing(db: sqlite3.Connection) -> None:
    states.settle_benchmark_run(db, None)
    states.settle_benchmark_run(db, "bmr_unknown")


def test_the_tally_reads_no_documents(db: sqlite3.Connection) -> None:
    """The index answers by itself, or a benchmark of thousands would be read again with each score."""
    asked: list[str] = []
    db.set_trace_callback(asked.append)
    states.summaries(db, "bmr_1")
    db.set_trace_callback(None)
    ((*_, plan),) = db.execute(f"EXPLAIN QUERY PLAN {asked[0]}")
    assert "scenario_runs_tally" in plan
