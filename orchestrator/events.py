"""What can happen in a sweep, as one line of its journal each; to and from plain dicts.

Intents are written before the call they announce, facts after it. A kind this version does not know is kept as
`Unknown` and skipped by the fold, so that an older version can read a newer journal of the same schema.

| event | kind | when |
|---|---|---|
| sweep.opened | fact | a process opened the run folder |
| benchmark_run.intended, .started, .ended | intent, fact, fact | each arm and trial number has its own benchmark run |
| stage.entered | intent | before the stage's first call |
| run.started | fact | the scenario run and its devbox have ids |
| execution.started | fact | the agent's command runs in the devbox and has an id |
| stage.finished | fact | with seconds at work and seconds waiting for a turn |
| attempt.ended | fact | without a score; whether the trial gets another attempt |
| trial.finished | fact | the whole result line; durable before the devbox is released |
| trial.reopened | intent | a finished trial is to be run again |
| sweep.ended | fact | and why |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final

from orchestrator.errors import JournalError

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `at` is wall-clock seconds since 1970, for people: nothing is decided by it."""

    kind: ClassVar[str]
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEvent(Event):
    """Something that happened to one attempt at a trial."""

    trial: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOpened(Event):
    kind: ClassVar[str] = "sweep.opened"
    sweep: str
    schema: int
    version: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRunIntended(Event):
    kind: ClassVar[str] = "benchmark_run.intended"
    arm: str
    number: int
    #: Counts the benchmark runs of this arm and number: another follows when one is over while trials are owed.
    round: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRunStarted(Event):
    kind: ClassVar[str] = "benchmark_run.started"
    arm: str
    number: int
    run: str
    round: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRunEnded(Event):
    kind: ClassVar[str] = "benchmark_run.ended"
    arm: str
    number: int
    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEntered(AttemptEvent):
    kind: ClassVar[str] = "stage.entered"
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(AttemptEvent):
    kind: ClassVar[str] = "run.started"
    run: str
    devbox: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionStarted(AttemptEvent):
    kind: ClassVar[str] = "execution.started"
    execution: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFinished(AttemptEvent):
    kind: ClassVar[str] = "stage.finished"
    stage: str
    seconds: float
    waited: float = 0.0
    #: What the stage found out, such as the agent's exit status.
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded(AttemptEvent):
    kind: ClassVar[str] = "attempt.ended"
    #: `{class, message, stage}`, see `model.Failure`.
    failure: Mapping[str, Any]
    #: Whether it used up one of the trial's attempts.
    counted: bool
    #: Seconds until the next attempt; None if there is none.
    retry_in: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFinished(AttemptEvent):
    kind: ClassVar[str] = "trial.finished"
    #: The line of results.jsonl.
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReopened(Event):
    kind: ClassVar[str] = "trial.reopened"
    trial: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepEnded(Event):
    kind: ClassVar[str] = "sweep.ended"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown(Event):
    """An event of a later version."""

    kind: ClassVar[str] = "unknown"
    data: Mapping[str, Any]


KINDS: Final[dict[str, type[Event]]] = {
    cls.kind: cls
    for cls in (
        SweepOpened,
        BenchmarkRunIntended,
        BenchmarkRunStarted,
        BenchmarkRunEnded,
        StageEntered,
        RunStarted,
        ExecutionStarted,
        StageFinished,
        AttemptEnded,
        TrialFinished,
        TrialReopened,
        SweepEnded,
    )
}


def to_dict(event: Event) -> dict[str, Any]:
    """An event as a JSON object, its kind under `event`."""
    if isinstance(event, Unknown):
        return dict(event.data)
    return {"event": event.kind} | {f.name: getattr(event, f.name) for f in fields(event)}


def from_dict(data: Mapping[str, Any]) -> Event:
    """The event that a JSON object says. Raises JournalError if it names no kind, or lacks a key its kind needs."""
    kind = data.get("event") if isinstance(data, Mapping) else None
    if not isinstance(kind, str):
        raise JournalError("an object with an `event` was expected")
    cls = KINDS.get(kind)
    if cls is None:
        return Unknown(at=data.get("at", 0.0), data=data)
    known = {f.name for f in fields(cls)}
    try:
        return cls(**{key: value for key, value in data.items() if key in known})
    except TypeError as error:
        raise JournalError(f"event {cls.kind}: {error}") from None
