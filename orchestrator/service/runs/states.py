"""State machines of runs: one table of moves each for scenario runs and benchmark runs.

A move that is not in its table raises. `completed`, `canceled` and `timeout` are ends; `failed` is one too unless the
devbox is still alive, when it may be scored again. A run is `scored` until its owner has taken the result and lets the
devbox go with `complete`: the published client waits for exactly that state, so nothing here moves on from it by
itself. A running one is scored without a scorer where its agent broke its own devbox.

Why `complete` is refused while scoring: it would throw away the result that was asked for.
"""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from orchestrator.service.errors import BadRequest
from orchestrator.service.records import BenchmarkRunRecord, BenchmarkRunStatus, RunState, ScenarioRunRecord
from orchestrator.service.store import now_ms

_R = RunState
_B = BenchmarkRunStatus

RUN_MOVES: Final[Mapping[RunState, frozenset[RunState]]] = {
    _R.RUNNING: frozenset({_R.SCORING, _R.SCORED, _R.COMPLETED, _R.CANCELED, _R.TIMEOUT, _R.FAILED}),
    _R.SCORING: frozenset({_R.SCORED, _R.CANCELED, _R.FAILED}),
    _R.SCORED: frozenset({_R.COMPLETED, _R.CANCELED}),
    _R.FAILED: frozenset({_R.SCORING}),
    _R.COMPLETED: frozenset(),
    _R.CANCELED: frozenset(),
    _R.TIMEOUT: frozenset(),
}
BENCHMARK_RUN_MOVES: Final[Mapping[BenchmarkRunStatus, frozenset[BenchmarkRunStatus]]] = {
    _B.RUNNING: frozenset({_B.COMPLETED, _B.CANCELED, _B.FAILED}),
    _B.COMPLETED: frozenset(),
    _B.CANCELED: frozenset(),
    _B.FAILED: frozenset(),
}

#: The scenario has its result, or was declared done without one.
DONE: Final = frozenset({_R.SCORED, _R.COMPLETED})
#: An agent or scorers are at work.
ALIVE: Final = frozenset({_R.RUNNING, _R.SCORING})
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


def moved_run(run: ScenarioRunRecord, target: RunState) -> ScenarioRunRecord:
    """Return a scenario run with its new state. Raises BadRequest naming the state that forbids it."""
    if target not in RUN_MOVES[run.state]:
        raise BadRequest(f"Scenario run {run.id} is {run.state} and cannot become {target}: {_ADVICE[run.state]}.")
    if target not in _STOPS_CLOCK:
        return replace(run, state=target, duration_ms=None)
    if run.duration_ms is not None:
        return replace(run, state=target)
    return replace(run, state=target, duration_ms=max(0, now_ms() - run.start_time_ms))


def moved_benchmark_run(run: BenchmarkRunRecord, target: BenchmarkRunStatus) -> BenchmarkRunRecord:
    """Return a benchmark run with its new state. Raises BadRequest naming the state that forbids it."""
    if target not in BENCHMARK_RUN_MOVES[run.state]:
        raise BadRequest(f"Benchmark run {run.id} is {run.state} and cannot become {target}: that is its end.")
    return replace(run, state=target, duration_ms=max(0, now_ms() - run.start_time_ms))
