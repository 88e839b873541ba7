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
| agent.started | fact | the agent's process runs on this host |
| output.kept | fact | every few seconds: how much of the agent's output is in its log, and from where to read on |
| stage.finished | fact | with seconds at work and seconds waiting for a turn |
| attempt.ended | fact | without a score; whether the trial gets another attempt |
| trial.finished | fact | the whole result line; durable before the devbox is released |
| trial.reopened | intent | a finished trial is to be run again |
| stray.found | intent | something of this sweep lives on the endpoint that no attempt needs; it is ended |
| sweep.ended | fact | and why |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import itemgetter
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
class AgentStarted(AttemptEvent):
    kind: ClassVar[str] = "agent.started"
    pid: int
    #: Tells this process from a later one with its number: see `agentkit.process.birth`.
    birth: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputKept(AttemptEvent):
    kind: ClassVar[str] = "output.kept"
    #: The next byte of the command's output to ask for, and the length of the log that has all before it.
    offset: int
    length: int


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
class StrayFound(Event):
    kind: ClassVar[str] = "stray.found"
    #: Ids on the endpoint; a devbox may live without its run.
    run: str | None
    devbox: str | None


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
        AgentStarted,
        OutputKept,
        StageFinished,
        AttemptEnded,
        TrialFinished,
        TrialReopened,
        StrayFound,
        SweepEnded,
    )
}


#: The names of each one's fields: asked of a dataclass every time, they would be most of what reading a journal costs.
_NAMES: Final = {cls: tuple(f.name for f in fields(cls)) for cls in KINDS.values()}


def _maker(cls: type[Event]) -> Callable[[Mapping[str, Any]], Event]:
    """How to make an event of a dict that has every field: half the time that the constructor of a frozen one takes."""
    values = itemgetter(*_NAMES[cls])
    slots = [getattr(cls, name).__set__ for name in _NAMES[cls]]

    def make(data: Mapping[str, Any]) -> Event:
        event = object.__new__(cls)
        for put, value in zip(slots, values(data), strict=True):
            put(event, value)
        return event

    return make


_MAKERS: Final = {kind: _maker(cls) for kind, cls in KINDS.items()}


def to_dict(event: Event) -> dict[str, Any]:
    """An event as a JSON object, its kind under `event`."""
    if isinstance(event, Unknown):
        return dict(event.data)
    return {"event": event.kind} | {name: getattr(event, name) for name in _NAMES[type(event)]}


def from_dict(data: Mapping[str, Any]) -> Event:
    """The event that a JSON object says. Raises JournalError if it names no kind, or lacks a key its kind needs."""
    try:
        return _MAKERS[data["event"]](data)
    except (KeyError, TypeError):
        return _from_unusual(data)


def _from_unusual(data: Mapping[str, Any]) -> Event:
    """An event of a later version, one that lacks a field, or none."""
    kind = data.get("event") if isinstance(data, Mapping) else None
    if not isinstance(kind, str):
        raise JournalError("an object with an `event` was expected")
    cls = KINDS.get(kind)
    if cls is None:
        return Unknown(at=data.get("at", 0.0), data=data)
    try:
        return cls(**{name: data[name] for name in _NAMES[cls] if name in data})
    except TypeError as error:
        raise JournalError(f"event {cls.kind}: {error}") from None
