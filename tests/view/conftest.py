"""Ledgers to look at."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.core.events import AttemptEnded, Event, StageEntered, TrialFinished
from orchestrator.core.plan import Plan
from orchestrator.core.records import ScenarioSummary, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.view.console import ThreadedStream, write_by_threads


@contextmanager
def threads() -> Iterator[None]:
    """Inside, what is printed is written by threads, to the descriptors."""
    before = sys.stdout, sys.stderr
    write_by_threads()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def settle() -> None:
    """Wait until what was printed and drawn is to be seen."""
    assert isinstance(sys.stdout, ThreadedStream)
    assert sys.stdout.output.settle()


@dataclass
class State:
    """The part of a picture that is not in the ledger."""

    phase: str = "running"
    troubles: Sequence[str] = ()
    stop: str | None = None
    is_asked_to_stop: bool = False
    is_ending: bool = False
    in_flight: Mapping[Stage, int] = field(default_factory=dict)
    longest_left: float = 0.0
    devboxes: int = 8
    is_reduced: bool = False
    trials: Sequence[TrialKey] = ()
    spent: Sequence[str] = ()


def make_plan(*names: str, arms: tuple[str, ...] = ("a",), trials: int = 1) -> Plan:
    scenarios = tuple(ScenarioSummary(id=f"s{number}", name=name) for number, name in enumerate(names))
    return Plan(benchmark="b", scenarios=scenarios, arms=arms, trials=trials)


def scored(
    trial: str,
    score: float,
    *,
    flags: Iterable[str] = (),
    seconds: float = 60.0,
    usage: Mapping[str, float] | None = None,
) -> TrialFinished:
    stages = {"boot": {"seconds": 0.0}, "solve": {"seconds": seconds}}
    result = {"outcome": "scored", "score": score, "flags": list(flags), "stages": stages, "usage": dict(usage or {})}
    return TrialFinished(trial=trial, attempt=1, result=result)


def failed(
    trial: str, *, outcome: str = "failed", message: str = "it is gone", kind: str = "DevboxLost", attempt: int = 1
) -> TrialFinished:
    failure = {"class": kind, "message": message, "stage": "boot"}
    return TrialFinished(trial=trial, attempt=attempt, result={"outcome": outcome, "score": None, "failure": failure})


def again(trial: str, message: str) -> list[Event]:
    failure = {"class": "DevboxLost", "message": message, "stage": "start"}
    return [
        StageEntered(trial=trial, attempt=1, stage=Stage.START),
        AttemptEnded(trial=trial, attempt=1, failure=failure, counted=True),
    ]
