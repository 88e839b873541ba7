"""Where a run may go from where it is: one table each for scenario runs and benchmark runs.

A move that is not in its table raises and changes nothing. `completed`, `canceled` and `timeout` are ends; `failed` is
one too unless the devbox is still alive, when it may be scored again. A run is `scored` until its owner has taken the
result and lets the devbox go with `complete`: the published client waits for exactly that state, so nothing here moves
on from it by itself. A running one is scored without a scorer where its agent broke its own devbox.

Why `complete` is refused while scoring: it would throw away the result that was asked for.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from orchestrator.service.errors import BadRequest
from orchestrator.service.store import Document, now_ms


class RunState(StrEnum):
    """Where a scenario run is."""

    RUNNING = "running"
    SCORING = "scoring"
    SCORED = "scored"
    COMPLETED = "completed"
    CANCELED = "canceled"
    TIMEOUT = "timeout"
    FAILED = "failed"


class BenchmarkRunState(StrEnum):
    """Where a benchmark run is."""

    RUNNING = "running"
    COMPLETED = "completed"
    CANCELED = "canceled"
    FAILED = "failed"


_R = RunState
_B = BenchmarkRunState

RUN_MOVES: Final[Mapping[RunState, frozenset[RunState]]] = {
    _R.RUNNING: frozenset({_R.SCORING, _R.SCORED, _R.COMPLETED, _R.CANCELED, _R.TIMEOUT, _R.FAILED}),
    _R.SCORING: frozenset({_R.SCORED, _R.CANCELED, _R.FAILED}),
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

#: The scenario has its result, or was declared done without one.
DONE: Final = frozenset({_R.SCORED, _R.COMPLETED})
#: Somebody is at it.
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


def move_run(run: Document, target: RunState) -> None:
    """Move a scenario run, in place. Raises BadRequest naming the state; then nothing has changed."""
    state = RunState(run["state"])
    if target not in RUN_MOVES[state]:
        raise BadRequest(f"Scenario run {run['id']} is {state} and cannot become {target}: {_ADVICE[state]}.")
    run["state"] = str(target)
    if target in _STOPS_CLOCK:
        run.setdefault("duration_ms", max(0, now_ms() - run["start_time_ms"]))
    else:
        run.pop("duration_ms", None)


def move_benchmark_run(run: Document, target: BenchmarkRunState) -> None:
    """Move a benchmark run, in place. Raises BadRequest naming the state; then nothing has changed."""
    state = BenchmarkRunState(run["state"])
    if target not in BENCHMARK_RUN_MOVES[state]:
        raise BadRequest(f"Benchmark run {run['id']} is {state} and cannot become {target}: that is its end.")
    run["state"] = str(target)
    run["duration_ms"] = max(0, now_ms() - run["start_time_ms"])
