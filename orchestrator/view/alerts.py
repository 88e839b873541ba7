"""What of a night is worth waking somebody for: judged from the fold of its journal, each thing once.

A night is compared with its own earlier part, because what is usual differs from benchmark to benchmark. A comparison
must be far beyond chance, since it is made all night long, and an alarm that is false is the last one that is heeded.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import comb, exp
from typing import Final

from orchestrator.core.config import SweepConfig
from orchestrator.core.ledger import EXCUSED, Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.printable import byte_size, counted, shortened
from orchestrator.core.protocol import Described
from orchestrator.core.records import Outcome, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.view.report import MESSAGE_WIDTH, gist_of, number

#: The chance at which a difference is no accident any more.
CHANCE: Final = 1e-4
#: Trials of an arm that are compared with all before them: a tenth of its plan, within these bounds.
FEWEST, MOST = 20, 100
#: The part of the earlier mean that is a collapse, and of the earlier throughput.
WORSE, SLOWER = 1 / 2, 1 / 4
#: The shortest time whose throughput is compared with all before it.
RECENT_S: Final = 1800.0
#: The part of a budget that is nearly all of it.
NEARLY: Final = 0.9
#: A disk has less than so many bytes left, and than such a part of it.
LITTLE_BYTES: Final = 5 * 10**9
LITTLE: Final = 0.02
HOUR_S: Final = 3600.0


class AlertKind(Described):
    """The kinds of notifications."""

    ENDED = "ended", "every trial has a result"
    STOPPED = "stopped", "the sweep has ended, and trials are left"
    FAILING = "failing", "many trials fail of one cause, or the sweep stops itself because of it"
    WORSE = "worse", "the latest trials of an arm score far less than those before"
    SLOWER = "slower", "far fewer trials end than before"
    BUDGET = "budget", "a budget is nearly used up"
    DISK = "disk", "the disk of the run folder is nearly full"
    TEST = "test", "`sweep notify` tries a notifier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something to tell, in one sentence. What has the same kind and `about` is told once."""

    kind: AlertKind
    words: str
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The part of a look that is not in the ledger.

    `config` has the budgets. `now` is by the journal's clock; `elapsed` are seconds at work since this process began.
    `deadline` is in seconds since 1970, `started` the time at which it was set. `free` and `size` are bytes of the run
    folder's disk. `halted` is the reason why the sweep stops itself, if it does because trials fail.
    """

    config: SweepConfig
    now: float
    elapsed: float
    started: float
    deadline: float | None = None
    halted: str | None = None
    free: int | None = None
    size: int = 0


class NightWatch:
    """Looks at a ledger now and then, and says what has happened that was not told yet.

    `chosen` are the trials of the plan that are to run now.

    The first look tells nothing: what is so already, after a resume, was told by an earlier process.
    """

    def __init__(self, ledger: Ledger, plan: Plan, chosen: Collection[TrialKey]) -> None:
        self._ledger = ledger
        self._plan = plan
        self._chosen = chosen
        self._names = {scenario.id: scenario.name for scenario in plan.scenarios}
        #: Seconds at work that the sweep was not paused, and those at work at the last look.
        self._active = self._at = 0.0
        self._told = set[tuple[AlertKind, str]]()
        #: The times at which trials ended, in active seconds; None is before this process.
        self._ends: dict[TrialKey, float | None] = {}
        self._is_new = True
        self._forget()

    def _forget(self) -> None:
        self._looked, self._last, self._done = 0, list[TrialKey](), 0
        #: Scores in the order in which trials ended, by arm; a trial without a score counts 0.
        self._scores: dict[str, list[float]] = {arm: [] for arm in self._plan.arms}
        self._causes = Counter[tuple[str, str]]()
        self._messages: dict[tuple[str, str], str] = {}

    def look(self, seen: Surroundings) -> list[Alert]:
        """Return what is to be told now."""
        if self._ledger.paused is None:
            self._active += seen.elapsed - self._at
        self._at = seen.elapsed
        self._count()
        found = list(self._found(seen))
        fresh = [each for each in found if (each.kind, each.about) not in self._told]
        self._told |= {(each.kind, each.about) for each in found}
        if self._is_new:
            self._is_new = False
            return []
        return fresh

    def _count(self) -> None:
        """Take in the trials that have finished since the last look."""
        finished = self._ledger.finished
        if finished[max(0, self._looked - 1) : self._looked] != self._last:  # a trial was reopened
            self._forget()
        for key in finished[self._looked :]:
            trial = self._ledger.trials[key]
            self._done += key in self._chosen
            if key not in self._plan or trial.failure in EXCUSED:
                continue
            self._scores[key.arm].append(trial.score or 0.0)
            self._ends.setdefault(key, None if self._is_new else self._active)
            if trial.failure is not None:
                cause = trial.failure, gist_of(trial.message, self._names[key.scenario])
                self._causes[cause] += 1
                self._messages.setdefault(cause, trial.message)
        self._looked, self._last = len(finished), finished[-1:]

    def _found(self, seen: Surroundings) -> Iterator[Alert]:
        if seen.halted is not None:
            yield Alert(kind=AlertKind.FAILING, words=f"The sweep stops itself: {seen.halted}.")
        else:
            yield from self._systematic(seen.config)
        yield from self._worse()
        yield from self._disk(seen)
        if self._is_owed:
            yield from self._slower()
            yield from self._budgets(seen)

    @property
    def _is_owed(self) -> bool:
        """True while trials wait for their turn."""
        under_way = sum(count for stage, count in self._ledger.stages.items() if stage is not Stage.RELEASE)
        return len(self._chosen) - self._done > under_way

    def _systematic(self, config: SweepConfig) -> Iterator[Alert]:
        for cause, count in self._causes.items():
            if count >= config.same_failures:
                words = shortened(f"{cause[0]}: {self._messages[cause]}", MESSAGE_WIDTH)
                yield Alert(kind=AlertKind.FAILING, words=f"{count} trials failed of one cause, {words}")

    def _worse(self) -> Iterator[Alert]:
        for arm, scores in self._scores.items():
            window = min(MOST, max(FEWEST, len(self._plan) // len(self._plan.arms) // 10))
            earlier, recent = scores[:-window], scores[-window:]
            if len(earlier) < window:
                continue
            usual, now = sum(earlier) / len(earlier), sum(recent) / window
            if now < WORSE * usual and binomial_tail(round(sum(recent)), window, min(1.0, usual)) < CHANCE:
                words = (
                    f"The last {window} trials of {arm} have a mean of {number(now)}; those before, {number(usual)}."
                )
                yield Alert(kind=AlertKind.WORSE, words=words, about=arm)

    def _slower(self) -> Iterator[Alert]:
        recent_s = max(RECENT_S, self._active / 5)
        before_s = self._active - recent_s
        ends = [end for end in self._ends.values() if end is not None]
        before = sum(end <= before_s for end in ends)
        if before_s < recent_s or before < FEWEST:
            return
        usual, now = before / before_s * recent_s, len(ends) - before
        if now < SLOWER * usual and poisson_tail(now, usual) < CHANCE:
            minutes = f"{recent_s / 60:.0f} minutes"
            words = f"{counted(now, 'trial')} ended in the last {minutes}; {usual:.0f} would have been usual."
            yield Alert(kind=AlertKind.SLOWER, words=words)

    def _budgets(self, seen: Surroundings) -> Iterator[Alert]:
        config, ledger = seen.config, self._ledger
        failures = ledger.outcomes[Outcome.FAILED] - ledger.excused
        hours = ledger.devbox_seconds(seen.now) / HOUR_S
        spent: dict[str, tuple[float, float | None]] = {
            "--max-cost": (ledger.cost, config.max_cost),
            "--max-devbox-hours": (hours, config.max_devbox_hours),
            "--max-failures": (failures, config.max_failures),
            **{f"the cost of {arm.name}": (ledger.costs.get(arm.name, 0.0), arm.cost) for arm in config.arms},
        }
        for name, (used, limit) in spent.items():
            if limit is not None and NEARLY * limit <= used < limit:
                words = f"{name} is nearly used up: {used:.4g} of {limit:g}."
                yield Alert(kind=AlertKind.BUDGET, words=words, about=f"{name} {limit:g}")
        if seen.deadline is not None and seen.now >= seen.started + NEARLY * (seen.deadline - seen.started):
            left = max(0.0, seen.deadline - seen.now)
            words = f"The deadline ({config.deadline}) is {left / 60:.0f} minutes away."
            yield Alert(kind=AlertKind.BUDGET, words=words, about=f"deadline {seen.deadline:.0f}")

    def _disk(self, seen: Surroundings) -> Iterator[Alert]:
        if seen.free is not None and seen.free < min(LITTLE_BYTES, LITTLE * seen.size):
            yield Alert(kind=AlertKind.DISK, words=f"The disk of the run folder has {byte_size(seen.free)} left.")


def binomial_tail(successes: int, of: int, chance: float) -> float:
    """The chance of so few successes, or fewer."""
    return sum(comb(of, count) * chance**count * (1 - chance) ** (of - count) for count in range(successes + 1))


def poisson_tail(events: int, usual: float) -> float:
    """The chance of so few events, or fewer, where `usual` are to be expected."""
    term = total = exp(-usual)
    for count in range(1, events + 1):
        term *= usual / count
        total += term
    return total
