"""The events of a sweep, each one line of its journal.

Intents are written before the call they announce, facts after it. A kind this version does not know is kept as
`Unknown` and skipped by the fold, so that an older version can read a newer journal of the same schema.

| event | kind | meaning |
|---|---|---|
| sweep.opened | fact | a process opened the run folder |
| benchmark_run.intended, .started, .ended | intent, fact, fact | each arm and trial number has its own benchmark run |
| stage.entered | intent | before the stage's first call |
| run.started | fact | the scenario run and its devbox have ids |
| execution.started | fact | the agent's command runs in the devbox and has an id |
| agent.started | fact | the agent's process runs on this host |
| output.kept | fact | every few seconds: the length of the agent's log, and the next byte of its output to read |
| stage.finished | fact | with seconds at work and seconds waiting for a turn |
| step.ended | fact | with its result; another step of the scenario follows |
| attempt.ended | fact | without a score; counted against the trial's attempts or not |
| trial.finished | fact | the whole result line; durable before the devbox is released |
| trial.reopened | intent | a finished trial will run again, or will be scored again |
| order.given | intent | a person changes a setting, pauses the sweep, or cancels or requeues trials |
| stray.found | intent | a run or devbox of this sweep on the endpoint that no attempt needs is ended |
| sweep.ended | fact | and why |
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol, get_args

import orjson
from msgspec import Struct, field, structs
from msgspec.json import Decoder

from orchestrator.core.errors import JournalError
from orchestrator.core.stages import Stage

SCHEMA: Final = 1


class Event(Struct, frozen=True, kw_only=True, gc=False, tag_field="event"):
    """Something that happened. `at` is wall-clock seconds since 1970, for people: nothing is decided by it."""

    at: float = 0.0

    @property
    def kind(self) -> str:
        return _kind(type(self))


class AttemptEvent(Event, frozen=True, kw_only=True):
    """Something that happened to one attempt at a trial."""

    trial: str
    attempt: int


class SweepOpened(Event, frozen=True, kw_only=True, tag="sweep.opened"):
    sweep: str
    schema: int
    version: str
    pid: int


class BenchmarkRunIntended(Event, frozen=True, kw_only=True, tag="benchmark_run.intended"):
    arm: str
    number: int
    #: Counts the benchmark runs of this arm and number: another follows when one is over while trials are owed.
    round: int = 1


class BenchmarkRunStarted(Event, frozen=True, kw_only=True, tag="benchmark_run.started"):
    arm: str
    number: int
    run: str
    round: int = 1


class BenchmarkRunEnded(Event, frozen=True, kw_only=True, tag="benchmark_run.ended"):
    arm: str
    number: int
    run: str


class StageEntered(AttemptEvent, frozen=True, kw_only=True, tag="stage.entered"):
    stage: Stage


class RunStarted(AttemptEvent, frozen=True, kw_only=True, tag="run.started"):
    run: str
    devbox: str


class ExecutionStarted(AttemptEvent, frozen=True, kw_only=True, tag="execution.started"):
    execution: str


class AgentStarted(AttemptEvent, frozen=True, kw_only=True, tag="agent.started"):
    pid: int
    #: Tells this process from a later one with its number: see `locks.birth`.
    birth: str


class OutputKept(AttemptEvent, frozen=True, kw_only=True, tag="output.kept"):
    #: The next byte of the command's output to ask for, and the length of the log that has all before it.
    offset: int
    length: int


class StageFinished(AttemptEvent, frozen=True, kw_only=True, tag="stage.finished"):
    stage: Stage
    seconds: float
    waited: float = 0.0
    #: Findings of the stage, such as the agent's exit status.
    facts: Mapping[str, Any] = field(default_factory=dict)


class StepEnded(AttemptEvent, frozen=True, kw_only=True, tag="step.ended"):
    #: An entry of `steps` in the line of results.jsonl. That of the last step is only there.
    result: Mapping[str, Any]


class AttemptEnded(AttemptEvent, frozen=True, kw_only=True, tag="attempt.ended"):
    #: `{class, message, stage}`, see `records.Failure`.
    failure: Mapping[str, Any]
    #: True if it used up one of the trial's attempts.
    counted: bool


class TrialFinished(AttemptEvent, frozen=True, kw_only=True, tag="trial.finished"):
    #: The line of results.jsonl.
    result: Mapping[str, Any]


class TrialReopened(Event, frozen=True, kw_only=True, tag="trial.reopened"):
    trial: str
    #: The line of results.jsonl whose work is scored again; None where the agent runs again.
    kept: Mapping[str, Any] | None = None


class OrderGiven(Event, frozen=True, kw_only=True, tag="order.given"):
    #: `set`, `pause`, `unpause`, `cancel` or `requeue`, and what was done, for people.
    order: str
    words: str
    #: The user who gave it, and the reason, which may be empty.
    by: str
    reason: str = ""
    #: The settings that changed, with their new values, and the trials that it is about.
    settings: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[str, ...] = ()


class StrayFound(Event, frozen=True, kw_only=True, tag="stray.found"):
    #: Ids on the endpoint; a devbox may live without its run.
    run: str | None
    devbox: str | None


class SweepEnded(Event, frozen=True, kw_only=True, tag="sweep.ended"):
    reason: str


class Unknown(Event, frozen=True, kw_only=True, tag="unknown"):
    """An event of a later version."""

    data: Mapping[str, Any]


Known = (
    SweepOpened
    | BenchmarkRunIntended
    | BenchmarkRunStarted
    | BenchmarkRunEnded
    | StageEntered
    | RunStarted
    | ExecutionStarted
    | AgentStarted
    | OutputKept
    | StageFinished
    | StepEnded
    | AttemptEnded
    | TrialFinished
    | TrialReopened
    | OrderGiven
    | StrayFound
    | SweepEnded
)


def _kind(cls: type[Event]) -> str:
    return str(cls.__struct_config__.tag)


KINDS: Final[dict[str, type[Event]]] = {_kind(cls): cls for cls in get_args(Known)}
_DECODER: Final[Decoder[Event]] = Decoder(Known)


def to_line(event: Event) -> bytes:
    """Encode an event as a line of the journal. Raises TypeError for a value that JSON has not."""
    data = event.data if isinstance(event, Unknown) else {"event": event.kind} | structs.asdict(event)
    return orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE)


def from_line(line: bytes) -> Event:
    """Parse a line; `Unknown` for an event of a later version. Raises JournalError that says what is wrong with it."""
    try:
        return _DECODER.decode(line)
    except (ValueError, RecursionError) as error:  # also of msgspec: not JSON, not UTF-8, a value amiss, all too deep
        try:
            data = orjson.loads(line)
        except orjson.JSONDecodeError as damage:
            raise JournalError(str(damage)) from None
        kind = data.get("event") if isinstance(data, dict) else None
        if not isinstance(kind, str):
            raise JournalError("an object with an `event` was expected") from None
        if kind in KINDS:
            raise JournalError(f"event {kind}: {error}") from None
        return Unknown(at=data.get("at", 0.0), data=data)


class Sink(Protocol):
    """The one road for facts: every event is appended here. The journal, or a list in a test."""

    async def append(self, *batch: Event) -> None:
        """Apply events to the ledger, and return when they and all before them are durable.

        Raises the ledger's error for one that cannot follow, which is not written, and JournalError if the disk
        refuses for too long. They are written also if the caller is canceled while it waits.
        """

    def append_nowait(self, *batch: Event) -> None:
        """Append without waiting: in the ledger now, durable no later than the next event that is waited for."""

    async def wait_writable(self) -> None:
        """Wait while the disk refuses, so that nothing new begins. Raises JournalError when it refuses for good."""
