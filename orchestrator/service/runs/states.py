"""States of runs, for scenario runs and benchmark runs each a table of moves, and the sum of a benchmark run.

A move that is not in its table raises. `completed`, `canceled` and `timeout` are ends; `failed` is one too unless the
devbox is still alive, when it may be scored again. A run is `scored` until its owner has taken the result and lets the
devbox go with `complete`: the published client waits for exactly that state, so nothing here moves on from it by
itself. A running one is scored without a scorer where its agent broke its own devbox. One of several steps is
`running` again when a step was scored, until no step follows.

The sum of a benchmark run is made anew from its scenario runs whenever one of them moved: a counter could be wrong.
What takes a connection runs inside a transaction of the caller.

Why `complete` is refused while scoring: it would throw away the result that was asked for.
"""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Final

from msgspec.structs import replace

from orchestrator.core.protocol import RUN_RESULT, BenchmarkRunState, RewardStrategy, RunState
from orchestrator.service import records
from orchestrator.service.definitions.steps import is_enough, rewards_of_all
from orchestrator.service.errors import BadRequest
from orchestrator.service.records import BenchmarkRunRecord, ContractResult, DevboxRecord, ScenarioRunRecord, StepRecord
from orchestrator.service.scoring.verdict import DECIMALS
from orchestrator.service.store import BENCHMARK_RUNS, SCENARIO_RUNS, now_ms

_R = RunState
_B = BenchmarkRunState

RUN_MOVES: Final[Mapping[RunState, frozenset[RunState]]] = {
    _R.RUNNING: frozenset({_R.SCORING, _R.SCORED, _R.COMPLETED, _R.CANCELED, _R.TIMEOUT, _R.FAILED}),
    _R.SCORING: frozenset({_R.SCORED, _R.RUNNING, _R.CANCELED, _R.FAILED}),
    _R.SCORED: frozenset({_R.COMPLETED, _R.CANCELED}),
    _R.FAILED: frozenset({_R.SCORING}),
    _R.COMPLETED: frozenset(),
    _R.CANCELED: frozenset(),
    _R.TIMEOUT: frozenset(),
}
BENCHMARK_RUN_MOVES: Final[Mapping[BenchmarkRunState, frozenset[BenchmarkRunState]]] = {
    _B.RUNNING: frozenset({_B.COMPLETED, _B.CANCELED, _B.FAILED}),
    _B.COMPLETED: frozenset(),
    _B.CANCELED: frozenset(),
    _B.FAILED: frozenset(),
}

#: An agent or scorers are at work.
AT_WORK: Final = frozenset({_R.RUNNING, _R.SCORING})
#: Moving here ends the clock of `duration_ms`.
_STOPS_CLOCK: Final = frozenset({_R.SCORED, _R.COMPLETED, _R.CANCELED, _R.TIMEOUT, _R.FAILED})

_ADVICE: Final[Mapping[RunState, str]] = {
    _R.RUNNING: "score, complete or cancel it",
    _R.SCORING: "wait until it is scored, or cancel it",
    _R.SCORED: "complete or cancel it",
    _R.FAILED: "score it again while its devbox lives, or cancel it to end the devbox",
    _R.COMPLETED: "that is its end",
    _R.CANCELED: "that is its end",
    _R.TIMEOUT: "that is its end",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Behaviour of runs beyond the published protocol, each part read at one place only.

    The orchestrator must get along with endpoints that do less; `testing.strict_compat` is such a one.
    """

    #: A run that is scoring or scored may be asked for its score again, which starts nothing; a failed one is scored.
    is_rescoring: bool = True
    #: A scoring function in `error` fails the run; else it counts 0 in the score of a run that is `scored`.
    is_error_failure: bool = True
    #: The metadata of a scenario run is on its devbox, too. The published documents do not say so.
    is_devbox_labelled: bool = True
    #: Scorers run in boxes of their own where the provider can make these; else in the agent's, as it is.
    is_scored_apart: bool = True


OURS: Final = Dialect()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A scenario run, as far as its benchmark run needs it."""

    id: str
    scenario_id: str
    state: RunState
    score: float | None


def moved_run(run: ScenarioRunRecord, target: RunState) -> ScenarioRunRecord:
    """Return a scenario run with its new state. Raises BadRequest naming the state that forbids it."""
    if target not in RUN_MOVES[run.state]:
        raise BadRequest(f"Scenario run {run.id} is {run.state} and cannot become {target}: {_ADVICE[run.state]}.")
    if target not in _STOPS_CLOCK:
        return replace(run, state=target, duration_ms=None)
    if run.duration_ms is not None:
        return replace(run, state=target)
    return replace(run, state=target, duration_ms=max(0, now_ms() - run.start_time_ms))


def end_run(
    db: sqlite3.Connection, run: ScenarioRunRecord, state: RunState, reason: str | None = None
) -> ScenarioRunRecord:
    """Move a scenario run and keep it. Raises BadRequest naming the state that forbids it."""
    run = replace(moved_run(run, state), failure_reason=reason or run.failure_reason)
    SCENARIO_RUNS.put(db, run)
    return run


def judged(run: ScenarioRunRecord, result: ContractResult | None) -> ScenarioRunRecord:
    """Return a run with the result of its scoring: `scored`, or `running` again where another step follows.

    None is the result of a step without tests. Raises BadRequest as `moved_run`.
    """
    if not run.planned:
        return moved_run(replace(run, scoring_contract_result=result), RunState.SCORED)
    before = run.steps or ()
    terms = run.planned[len(before)]
    step = StepRecord(name=terms.name, scoring_contract_result=result, scoring=run.scoring)
    steps = (*before, step)
    run = replace(run, steps=steps, is_step_begun=False, scoring_mode=None, is_live_over=False, faults=0)
    is_broken = bool(run.scoring and run.scoring.broken)
    is_last = is_broken or len(steps) == len(run.planned) or not is_enough(step.rewards or {}, terms.min_reward)
    if not is_last:
        return moved_run(replace(run, scoring=None), RunState.RUNNING)

    results = [
        replace(each, scoring_function_name=step.name)
        for step in steps
        if step.scoring_contract_result is not None
        for each in step.scoring_contract_result.scoring_function_results
    ]
    #: Who breaks the devbox has solved none of the steps that it ended.
    left = [0.0] * (len(run.planned) - len(steps)) if is_broken else []
    scores = [each.scoring_contract_result.score for each in steps if each.scoring_contract_result is not None] + left
    if run.strategy is RewardStrategy.FINAL:
        scores = [result.score] if result is not None and not is_broken else []
    score = round(fsum(scores) / len(scores), DECIMALS) if scores else 0.0
    total = ContractResult(score=score, scoring_function_results=results)
    rewards = rewards_of_all(run.strategy, [*(each.rewards for each in steps), *({} for _ in left)])
    return moved_run(replace(run, scoring_contract_result=total, rewards=rewards or None), RunState.SCORED)


def with_broken(run: ScenarioRunRecord, words: Sequence[str]) -> ScenarioRunRecord:
    """Note on a run that what its agent left broke the box it was judged in."""
    if not words:
        return run
    return replace(run, scoring=replace(run.scoring or records.ScoringRecord(), broken="; ".join(words)))


def moved_benchmark_run(run: BenchmarkRunRecord, target: BenchmarkRunState) -> BenchmarkRunRecord:
    """Return a benchmark run with its new state. Raises BadRequest naming the state that forbids it."""
    if target not in BENCHMARK_RUN_MOVES[run.state]:
        raise BadRequest(f"Benchmark run {run.id} is {run.state} and cannot become {target}: that is its end.")
    return replace(run, state=target, duration_ms=max(0, now_ms() - run.start_time_ms))


def summaries(db: sqlite3.Connection, benchmark_run_id: str) -> list[RunSummary]:
    """Return all scenario runs of a benchmark run."""
    return [
        RunSummary(id=identity, scenario_id=scenario_id, state=RunState(state), score=score)
        for identity, scenario_id, state, score in SCENARIO_RUNS.tally(db, benchmark_run_id)
    ]


def score_of(runs: Collection[RunSummary]) -> float | None:
    """Return the sum of scenario scores / number of scenario runs; None without a run.

    Source of the rule: the published description of `BenchmarkRunView.score`. A run without a result counts as 0.
    """
    if not runs:
        return None
    return sum(run.score or 0.0 for run in runs if run.state in RUN_RESULT) / len(runs)


def pending(db: sqlite3.Connection, run: BenchmarkRunRecord) -> list[str]:
    """Return the scenario ids noted at the start, minus those with a run that is scored, completed or at work."""
    taken = {each.scenario_id for each in summaries(db, run.id) if each.state in RUN_RESULT | AT_WORK}
    return [scenario_id for scenario_id in run.scenario_ids if scenario_id not in taken]


def settle_benchmark_run(db: sqlite3.Connection, benchmark_run_id: str | None) -> None:
    """After a scenario run moved: complete its benchmark run if every scenario is done; no devbox is touched.

    The score of a benchmark run that is over follows runs that still moved after its end.
    """
    run = BENCHMARK_RUNS.find(db, benchmark_run_id) if benchmark_run_id else None
    if run is None:
        return
    runs = summaries(db, run.id)
    if run.state is BenchmarkRunState.RUNNING:
        if not {each.scenario_id for each in runs if each.state in RUN_RESULT}.issuperset(run.scenario_ids):
            return
        run = moved_benchmark_run(run, BenchmarkRunState.COMPLETED)
    BENCHMARK_RUNS.put(db, replace(run, score=score_of(runs)))


def end_benchmark_run(db: sqlite3.Connection, run: BenchmarkRunRecord, state: BenchmarkRunState) -> None:
    """End a benchmark run whose scenario runs have been ended, and note its score."""
    BENCHMARK_RUNS.put(db, replace(moved_benchmark_run(run, state), score=score_of(summaries(db, run.id))))


def end_broken(db: sqlite3.Connection, run: ScenarioRunRecord, how: str) -> None:
    """Score a run with 0, for its agent broke its own devbox: that solves nothing, and is no failure of ours."""
    output = f"The agent broke its own devbox. {how}\n"
    results = [
        records.FunctionResult(
            scoring_function_name=name, score=0.0, output=output, state=records.FunctionState.COMPLETE
        )
        for name in run.functions
    ]
    result = records.ContractResult(score=0.0, scoring_function_results=results)
    SCENARIO_RUNS.put(db, judged(with_broken(run, [how]), result))
    settle_benchmark_run(db, run.benchmark_run_id)


def end_runs_of(db: sqlite3.Connection, devbox: DevboxRecord) -> None:
    """End the run of a devbox that ended, if it is at work."""
    for run in SCENARIO_RUNS.select(db, {"devbox_id": devbox.id}):
        if run.state not in AT_WORK:
            continue
        words = f" ({devbox.end_message})" if devbox.end_message else ""
        how = f"Devbox {devbox.id} ended while the run was {run.state}: {devbox.end_reason or devbox.status}{words}"
        if devbox.broken_by_agent:
            end_broken(db, run, how)
        else:
            is_timeout = run.state is RunState.RUNNING and devbox.shutdown_reason == "keep_alive_timeout"
            end_run(db, run, RunState.TIMEOUT if is_timeout else RunState.FAILED, how)
