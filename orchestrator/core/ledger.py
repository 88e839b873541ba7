"""The state of a sweep: the fold of its journal, and the only meaning of a journal.

Progress, report, resume and tests read the same fold, so they cannot disagree; a crash is only "stop reading here".
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Any, ClassVar, Final, Self

from orchestrator.core import events
from orchestrator.core.errors import Canceled, InternalError, Interrupted, Unsupported
from orchestrator.core.records import Outcome, TrialKey
from orchestrator.core.stages import Stage, move

#: The class of a failure that is nobody's: we were stopped, or died.
INTERRUPTED: Final = Interrupted.__name__
#: The class of a failure that is known before anything is tried.
UNSUPPORTED: Final = Unsupported.__name__
EXCUSED: Final = frozenset({UNSUPPORTED, Canceled.__name__})
#: The part that is counted, at most, of a time in which no process watched the devboxes that were up.
MAX_UNWATCHED_S: Final = 3600.0
#: Characters of a failure's message that are kept.
MAX_MESSAGE: Final = 500


@dataclass(slots=True)
class Attempt:
    """The newest attempt of a trial, while it is not released."""

    number: int
    #: Wall-clock seconds since 1970 at which it began.
    began: float = 0.0
    stage: Stage | None = None
    #: Wall-clock seconds since 1970 at which its stage began.
    since: float = 0.0
    run: str | None = None
    devbox: str | None = None
    execution: str | None = None
    #: The host agent's process, and its birth, which a later process of that number does not share.
    pid: int | None = None
    birth: str = ""
    #: The next byte of the execution's output to read, and the length of the log that has all before it.
    offset: int = 0
    length: int = 0
    #: The time at which that log was last known to grow, by the journal's clock; 0 before.
    grew: float = 0.0
    #: The number of times in a row that its stage was entered.
    entries: int = 0
    #: The last stage that was finished; the facts of all stages, and the times of each.
    finished: Stage | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    #: The results of the steps that have ended, of a scenario of several; all above is of the next one then.
    steps: list[dict[str, Any]] = field(default_factory=list)
    #: The time at which its devbox was up, by the journal's clock; None before, and after its release.
    up_since: float | None = None

    @property
    def is_scored(self) -> bool:
        return self.finished is Stage.SCORE

    @property
    def is_between_steps(self) -> bool:
        """True if a step has ended, and no stage of the next one was entered."""
        return bool(self.steps) and self.entries == 0

    def copy(self) -> "Attempt":
        return replace(self, facts=self.facts.copy(), stages=self.stages.copy(), steps=self.steps.copy())


@dataclass(slots=True)
class Trial:
    """The state of one trial that has begun."""

    outcome: Outcome | None = None
    score: float | None = None
    flags: tuple[str, ...] = ()
    #: The exit status of its agent; None if it ran out of time, or never ended.
    exit_status: int | None = None
    #: The start of the first of the attempts that led to its result, by the journal's clock.
    began: float | None = None
    #: The number of attempts that began, and of those that count against the limit.
    attempts: int = 0
    counted: int = 0
    #: The last attempt that ended without a score, and the number of those that were interrupted.
    last_ended: int = 0
    interrupted: int = 0
    #: The attempt under way; None between attempts and after the release.
    attempt: Attempt | None = None
    #: `{attempt, failure}` of each attempt that ended without a score; dropped when the trial is finished.
    failures: list[dict[str, Any]] = field(default_factory=list)
    #: The result whose work is scored again; None where an agent works.
    kept: dict[str, Any] | None = None
    #: The class of the failure that the trial ended with, and the beginning of its message.
    failure: str | None = None
    message: str = ""
    #: Seconds at work in all stages of its last attempt, and its agent's share of them.
    seconds: float = 0.0
    agent_seconds: float = 0.0
    #: US dollars, and input and output tokens, that its agent reports to have spent, in every attempt. A cost of None
    #: is one that it never reported.
    cost: float | None = None
    tokens: int = 0

    def copy(self) -> "Trial":
        return replace(self, attempt=self.attempt and self.attempt.copy(), failures=self.failures.copy())


@dataclass(slots=True)
class JournaledBenchmarkRun:
    """The benchmark run of one arm and trial number. `run` is None while it is only intended."""

    round: int = 1
    run: str | None = None
    is_ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A failure, for the list of the latest ones."""

    trial: TrialKey
    error: str
    message: str
    is_final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenOrder:
    """An order that a person gave: at which time by the journal's clock, what was done, by whom, and why."""

    at: float
    order: str
    words: str
    by: str
    reason: str

    @property
    def giver(self) -> str:
        """Who gave it, and why, for people: without the process, which is gone when they read it."""
        who = self.by.partition(" (process ")[0]
        return f"{who}: {self.reason}" if self.reason else who


@dataclass
class Ledger:
    """The state of a sweep after the events applied so far."""

    LATEST = 5

    trials: dict[TrialKey, Trial] = field(default_factory=dict)
    benchmark_runs: dict[tuple[str, int], JournaledBenchmarkRun] = field(default_factory=dict)
    #: The finished trials, in the order they finished.
    finished: list[TrialKey] = field(default_factory=list)
    #: The trials with an attempt that is not released, in the order in which those began: the keys.
    held: dict[TrialKey, None] = field(default_factory=dict)
    #: The time of the first event; the number of processes so far, and the seconds between them.
    began: float = 0.0
    opened: int = 0
    unattended_seconds: float = 0.0
    ended: str | None = None
    stages: Counter[Stage] = field(default_factory=Counter)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    #: The number of the failed trials that say nothing of the night: they could not be tried at all, or were canceled.
    excused: int = 0
    latest_failures: list[Notice] = field(default_factory=list)
    #: Attempts that were followed by another before their release was journaled.
    leftovers: dict[tuple[TrialKey, int], Attempt] = field(default_factory=dict)
    #: US dollars that the agents of each arm report to have spent, in every attempt; no arm whose agents report none.
    costs: dict[str, float] = field(default_factory=dict)
    #: Input and output tokens that they report to have used, in every attempt too.
    tokens: dict[str, int] = field(default_factory=dict)
    #: Seconds of the devboxes that are released; the number of those that are up, and the sum of their `up_since`.
    released_seconds: float = 0.0
    up: int = 0
    up_since: float = 0.0
    #: The orders that were given, the one that pauses the sweep, and those that cancel trials without a result yet.
    orders: list[GivenOrder] = field(default_factory=list)
    paused: GivenOrder | None = None
    canceled: dict[TrialKey, GivenOrder] = field(default_factory=dict)
    #: The orders that end attempts under way so that others follow.
    requeued: dict[TrialKey, GivenOrder] = field(default_factory=dict)
    #: The time of the latest event.
    at: float = 0.0

    def copy(self) -> Self:
        """An independent copy: events that are applied to one of the two do not change the other."""
        twin = type(self)()
        for each in fields(Ledger):
            value = getattr(self, each.name)
            setattr(twin, each.name, value.copy() if isinstance(value, dict | list) else value)
        twin.trials = {key: trial.copy() for key, trial in self.trials.items()}
        twin.benchmark_runs = {key: replace(run) for key, run in self.benchmark_runs.items()}
        twin.leftovers = {key: attempt.copy() for key, attempt in self.leftovers.items()}
        return twin

    def apply(self, event: events.Event) -> None:
        """Add one event. Raises InternalError for one that cannot follow, and changes nothing then."""
        add = self._BY_TYPE.get(type(event))
        try:
            if add is not None:
                add(self, event)
                self.at = event.at
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise InternalError(f"The journal has a malformed {event.kind}: {error!r}.") from error

    @property
    def cost(self) -> float:
        """US dollars that agents report to have spent, in all arms."""
        return sum(self.costs.values())

    def worked_seconds(self, now: float) -> float:
        """Seconds in which a process worked on the sweep; `now` is by the journal's clock."""
        return max(0.0, now - self.began - self.unattended_seconds) if self.opened else 0.0

    def devbox_seconds(self, now: float) -> float:
        """Seconds between boot and release, of all devboxes so far; `now` is by the journal's clock."""
        return self.released_seconds + max(0.0, self.up * now - self.up_since)

    def is_finished(self, key: TrialKey) -> bool:
        trial = self.trials.get(key)
        return trial is not None and trial.outcome is not None

    def under_way(self, key: TrialKey) -> Attempt | None:
        """The attempt that a process began and did not end; None if there is none."""
        trial = self.trials.get(key)
        if trial is None or trial.attempt is None or trial.outcome is not None:
            return None
        return trial.attempt if trial.attempt.number > trial.last_ended else None

    def has_run(self, key: TrialKey) -> bool:
        """True if the attempt under way has a run with a devbox."""
        attempt = self.under_way(key)
        return attempt is not None and attempt.run is not None

    def unreleased(self) -> list[tuple[TrialKey, Attempt]]:
        """The attempts whose release is not journaled."""
        newest = [(key, attempt) for key in self.held if (attempt := self.trials[key].attempt) is not None]
        return newest + [(key, attempt) for (key, _), attempt in self.leftovers.items()]

    def _attempt(self, event: events.AttemptEvent) -> Attempt:
        attempt = self.trials.get(TrialKey.parse(event.trial), _NO_TRIAL).attempt
        if attempt is None or attempt.number != event.attempt:
            raise InternalError(
                f"The journal speaks of attempt {event.attempt} of {event.trial}, which is not under way."
            )
        return attempt

    def _enter(self, event: events.StageEntered) -> None:
        key, stage = TrialKey.parse(event.trial), event.stage
        trial = self.trials.get(key, _NO_TRIAL)
        attempt = trial.attempt
        if attempt is not None and attempt.number == event.attempt:
            move(attempt.stage, stage)
            if stage is Stage.PREPARE and attempt.stage is not Stage.BOOT and not attempt.steps:
                raise InternalError(f"The journal begins a step of {key}, and none has ended.")
            self._leave_stage(attempt)
        elif self.leftovers and (key, event.attempt) in self.leftovers:
            move(self.leftovers[key, event.attempt].stage, stage)
            return
        else:
            move(None, stage)
            if trial.outcome is not None or event.attempt != trial.attempts + 1:
                raise InternalError(f"The journal begins attempt {event.attempt} of {key}, which is not its next.")
            trial = self.trials.setdefault(key, Trial())
            self._set_aside(key, trial)
            trial.attempts = event.attempt
            trial.began = event.at if trial.began is None else trial.began
            trial.attempt = attempt = Attempt(number=event.attempt, began=event.at)
            self.held[key] = None
        attempt.entries = attempt.entries + 1 if attempt.stage is stage else 1
        attempt.stage, attempt.since = stage, event.at
        self.stages[stage] += 1

    def _set_aside(self, key: TrialKey, trial: Trial) -> None:
        """Keep the attempt that another replaces: it is still to be released."""
        if trial.attempt is not None:
            self._leave_stage(trial.attempt)
            self.leftovers[key, trial.attempt.number] = trial.attempt
            del self.held[key]

    def _note(
        self, event: events.RunStarted | events.ExecutionStarted | events.AgentStarted | events.OutputKept
    ) -> None:
        attempt = self._attempt(event)
        if type(event) is events.OutputKept and event.length != attempt.length:
            attempt.grew = event.at
        for name in _NOTED[type(event)]:
            setattr(attempt, name, getattr(event, name))

    def _leave_stage(self, attempt: Attempt) -> None:
        if attempt.stage is not None:
            self.stages[attempt.stage] -= 1

    def _finish_stage(self, event: events.StageFinished) -> None:
        key, stage = TrialKey.parse(event.trial), event.stage
        if self.leftovers and (key, event.attempt) in self.leftovers and stage is Stage.RELEASE:
            self._put_down(self.leftovers.pop((key, event.attempt)), event.at)
            return
        attempt = self._attempt(event)
        if attempt.stage is not stage:
            raise InternalError(f"The journal finishes stage {stage} of {event.trial}, which is not under way.")
        attempt.finished = stage
        attempt.facts |= event.facts
        attempt.stages[str(stage)] = {"seconds": event.seconds, "waited": event.waited}
        self._spend(key, event.facts)
        if stage is Stage.BOOT and attempt.up_since is None:
            attempt.up_since = event.at
            self.up += 1
            self.up_since += event.at
        elif stage is Stage.RELEASE:
            self._leave_stage(attempt)
            self._put_down(attempt, event.at)
            self.trials[key].attempt = None
            del self.held[key]

    def _end_step(self, event: events.StepEnded) -> None:
        attempt = self._attempt(event)
        if attempt.finished is not Stage.SCORE:
            raise InternalError(f"The journal ends a step of {event.trial} that was not scored.")
        attempt.steps.append(dict(event.result))
        attempt.execution, attempt.pid, attempt.birth, attempt.offset, attempt.length = None, None, "", 0, 0
        attempt.entries, attempt.finished, attempt.facts, attempt.stages = 0, None, {}, {}

    def _spend(self, key: TrialKey, facts: Mapping[str, Any]) -> None:
        usage = facts.get("usage")
        if not isinstance(usage, dict):  # an agent may report anything
            return
        if (cost := _amount(usage.get("cost_usd"))) is not None:
            self.costs[key.arm] = self.costs.get(key.arm, 0.0) + cost
            self.trials[key].cost = (self.trials[key].cost or 0.0) + cost
        if tokens := int(sum(_amount(usage.get(name)) or 0.0 for name in ("input_tokens", "output_tokens"))):
            self.tokens[key.arm] = self.tokens.get(key.arm, 0) + tokens
            self.trials[key].tokens += tokens

    def _put_down(self, attempt: Attempt, at: float) -> None:
        """Count the time of an attempt's devbox, which is gone; does nothing if it had none."""
        if attempt.up_since is not None:
            self.released_seconds += max(0.0, at - attempt.up_since)
            self.up -= 1
            self.up_since -= attempt.up_since
            attempt.up_since = None

    def _end_attempt(self, event: events.AttemptEnded) -> None:
        self._attempt(event)
        key = TrialKey.parse(event.trial)
        trial = self.trials[key]
        if trial.outcome is not None or event.attempt <= trial.last_ended:
            return  # a process that was stopped while it wrote an end, or a result, ends the attempt once more
        failure = {"attempt": event.attempt, "failure": dict(event.failure)}
        self.requeued.pop(key, None)
        if event.counted:
            self._notice(key, event.failure, is_final=False)
        trial.counted += event.counted
        trial.last_ended = event.attempt
        trial.interrupted += event.failure["class"] == INTERRUPTED
        trial.failures.append(failure)

    def _finish(self, event: events.TrialFinished) -> None:
        key = TrialKey.parse(event.trial)
        trial = self.trials.get(key, _NO_TRIAL)
        if trial.outcome is not None:
            raise InternalError(f"The journal finishes trial {event.trial} twice.")
        result = event.result
        outcome, flags = Outcome(result["outcome"]), tuple(result.get("flags", ()))
        stages = result.get("stages", {})
        seconds, solve = sum(stage["seconds"] for stage in stages.values()), stages.get("solve", {"seconds": 0.0})
        failure = result.get("failure")
        if failure:
            self._notice(key, failure, is_final=True)
        trial = self.trials.setdefault(key, Trial())
        is_spent = trial.kept or (trial.attempt and ("usage" in trial.attempt.facts or trial.attempt.steps))
        if not is_spent:
            self._spend(key, result)
        trial.attempts = max(trial.attempts, event.attempt)
        trial.outcome, trial.score, trial.flags = outcome, result.get("score"), flags
        trial.exit_status = result.get("exit_status")
        trial.seconds, trial.agent_seconds = seconds, solve["seconds"]
        trial.failure, trial.message = (failure["class"], failure["message"][:MAX_MESSAGE]) if failure else (None, "")
        trial.failures = []
        self.outcomes[outcome] += 1
        self.excused += trial.failure in EXCUSED
        self.canceled.pop(key, None)
        self.requeued.pop(key, None)
        self.finished.append(key)

    def _begin_benchmark_run(self, event: events.BenchmarkRunIntended | events.BenchmarkRunStarted) -> None:
        run = event.run if isinstance(event, events.BenchmarkRunStarted) else None
        self.benchmark_runs[event.arm, event.number] = JournaledBenchmarkRun(round=event.round, run=run)

    def _end_benchmark_run(self, event: events.BenchmarkRunEnded) -> None:
        state = self.benchmark_runs.get((event.arm, event.number))
        if state is None:
            raise InternalError(f"The journal ends benchmark run {event.run}, which it never began.")
        state.is_ended = True

    def _reopen(self, event: events.TrialReopened) -> None:
        key = TrialKey.parse(event.trial)
        trial = self.trials.get(key, _NO_TRIAL)
        if trial.outcome is None:
            raise InternalError(f"The journal reopens trial {key}, which is not finished.")
        self.outcomes[trial.outcome] -= 1
        self.excused -= trial.failure in EXCUSED
        self.finished.remove(key)
        self._set_aside(key, trial)
        self.trials[key] = Trial(
            attempts=trial.attempts,
            kept=None if event.kept is None else dict(event.kept),
            cost=trial.cost,
            tokens=trial.tokens,
        )

    def _obey(self, event: events.OrderGiven) -> None:
        given = GivenOrder(at=event.at, order=event.order, words=event.words, by=event.by, reason=event.reason)
        self.orders.append(given)
        if event.order in {"pause", "unpause"}:
            self.paused = given if event.order == "pause" else None
        elif event.order == "cancel":
            self.canceled |= {key: given for key in map(TrialKey.parse, event.trials) if not self.is_finished(key)}
        elif event.order == "requeue":
            for key in map(TrialKey.parse, event.trials):
                self.canceled.pop(key, None)
                if self.under_way(key) is not None:
                    self.requeued[key] = given

    def _notice(self, key: TrialKey, failure: Mapping[str, Any], *, is_final: bool) -> None:
        notice = Notice(trial=key, error=failure["class"], message=failure["message"], is_final=is_final)
        self.latest_failures = [*self.latest_failures[1 - self.LATEST :], notice]

    def _open(self, event: events.SweepOpened) -> None:
        self.opened += 1
        self.ended = self.paused = None
        if self.opened == 1:
            self.began = event.at
        else:
            self.unattended_seconds += max(0.0, event.at - self.at)
        seconds = event.at - self.at  # since the last process, by a clock that may be set otherwise than its
        uncounted = seconds - min(max(0.0, seconds), MAX_UNWATCHED_S)
        if uncounted and self.up:
            for _, attempt in self.unreleased():
                if attempt.up_since is not None:
                    attempt.up_since += uncounted
                    self.up_since += uncounted

    def _end(self, event: events.SweepEnded) -> None:
        self.ended = event.reason

    #: The methods that apply events; others change nothing. A million are looked up here when a long journal is read.
    _BY_TYPE: ClassVar[dict[type[events.Event], Callable[["Ledger", Any], None]]] = {
        events.SweepOpened: _open,
        events.BenchmarkRunIntended: _begin_benchmark_run,
        events.BenchmarkRunStarted: _begin_benchmark_run,
        events.BenchmarkRunEnded: _end_benchmark_run,
        events.StageEntered: _enter,
        events.RunStarted: _note,
        events.ExecutionStarted: _note,
        events.AgentStarted: _note,
        events.OutputKept: _note,
        events.StageFinished: _finish_stage,
        events.StepEnded: _end_step,
        events.AttemptEnded: _end_attempt,
        events.TrialFinished: _finish,
        events.TrialReopened: _reopen,
        events.OrderGiven: _obey,
        events.SweepEnded: _end,
    }


def _amount(reported: object) -> float | None:
    """The number that an agent reported; None for anything that is no amount."""
    return float(reported) if isinstance(reported, int | float) and 0 <= reported < inf else None


_NO_TRIAL: Final = Trial()
#: The fields of an attempt that an event has, too.
_NOTED: Final[Mapping[type[events.Event], tuple[str, ...]]] = {
    events.RunStarted: ("run", "devbox"),
    events.ExecutionStarted: ("execution",),
    events.AgentStarted: ("pid", "birth"),
    events.OutputKept: ("offset", "length"),
}


def fold(events: Iterable[events.Event]) -> Ledger:
    """The state of the sweep whose journal has these events."""
    ledger = Ledger()
    for event in events:
        ledger.apply(event)
    return ledger
