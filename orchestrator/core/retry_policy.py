"""The reaction to a failure, decided by whose fault it was. Pure: the caller brings the numbers and the dice.

`RULES` is complete: the nearest class in the tree of `errors.py` has the rule. `table()` shows it to people.

A back-off never holds a devbox: what is tried again in a new attempt has given its devbox back before, what comes later
has none yet, and what is scored again, which needs its devbox, is scored again at once. Nor does it hold a worker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from orchestrator.core import errors
from orchestrator.core.errors import SweepError
from orchestrator.core.stages import Stage


class Action(StrEnum):
    """The reaction to a failure."""

    NEW_ATTEMPT = "a new attempt"
    LATER = "the same attempt, later"
    SCORE_AGAIN = "scored again, same devbox"
    GIVE_UP = "the trial failed"
    STOP = "the sweep stops"


#: The bound of the tries: attempts or scorings that the user allows, deferred starts, or interrupted attempts.
Bound = Literal["attempts", "scorings", "delays", "interruptions"]
MAX_DELAYS: Final = 60
MAX_INTERRUPTIONS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """The reaction to one class of failure. The back-off doubles from `base` to `cap`, in seconds.

    `bound` is None if nothing bounds the tries. Only a failure that is bounded by `attempts` uses one of them up.
    """

    action: Action
    bound: Bound | None = "attempts"
    base: float = 1.0
    cap: float = 60.0

    @property
    def is_counted(self) -> bool:
        return self.bound == "attempts" and self.action is not Action.STOP


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The reaction to this failure, after `delay` seconds.

    `is_push_back` means that the endpoint asks for less, `defers_all` that every other start would fail alike.
    """

    action: Action
    delay: float = 0.0
    is_push_back: bool = False
    defers_all: bool = False


RULES: Final[Mapping[type[SweepError], RetryRule]] = {
    errors.WorldError: RetryRule(action=Action.NEW_ATTEMPT),
    errors.Throttled: RetryRule(action=Action.NEW_ATTEMPT, base=4.0, cap=300.0),
    errors.Refused: RetryRule(action=Action.GIVE_UP),
    errors.Missing: RetryRule(action=Action.NEW_ATTEMPT),
    errors.Unauthorized: RetryRule(action=Action.STOP),
    errors.Conflicted: RetryRule(action=Action.NEW_ATTEMPT),
    errors.Interrupted: RetryRule(action=Action.NEW_ATTEMPT, bound="interruptions", base=0.0),
    errors.AllowanceUsedUp: RetryRule(action=Action.NEW_ATTEMPT, bound=None),
    errors.AgentError: RetryRule(action=Action.GIVE_UP),
    errors.AgentSetupFailed: RetryRule(action=Action.NEW_ATTEMPT),
    errors.ByHand: RetryRule(action=Action.GIVE_UP),
    errors.Requeued: RetryRule(action=Action.NEW_ATTEMPT, bound=None, base=0.0),
    errors.Unsupported: RetryRule(action=Action.GIVE_UP),
    errors.EnvironmentFailed: RetryRule(action=Action.GIVE_UP),
    errors.ScoringFault: RetryRule(action=Action.SCORE_AGAIN, bound="scorings", base=0.0),
    errors.SweepError: RetryRule(action=Action.STOP),
}
#: While the run is only asked for there is no devbox to lose: the attempt waits its time, and begins no other.
AT_START: Final[Mapping[type[SweepError], RetryRule]] = {
    errors.Throttled: RetryRule(action=Action.LATER, bound="delays", base=4.0, cap=300.0),
    errors.Unavailable: RetryRule(action=Action.LATER, bound="delays", base=1.0, cap=120.0),
    errors.Missing: RetryRule(action=Action.LATER, bound=None),
}


def rule(failure: SweepError, at: Stage | None = None) -> RetryRule:
    """The rule of the nearest class in the tree, for a failure in the stage `at`."""
    rules = {**RULES, **AT_START} if at is Stage.START else RULES
    return next(rules[cls] for cls in type(failure).__mro__ if cls in rules)


def decide(failure: SweepError, its_rule: RetryRule, *, tries: int, allowed: int | None, dice: float) -> Decision:
    """Decide on the `tries`-th failure of its kind when `allowed` are allowed (None: any number).

    Full jitter: `dice` is uniform in [0, 1), so the back-off is uniform between 0 and the doubled base, but never less
    than the endpoint asked for. A start that was deferred too often is a failed attempt.
    """
    if its_rule.action in {Action.GIVE_UP, Action.STOP}:
        return Decision(action=its_rule.action)
    if allowed is not None and tries >= allowed:
        return Decision(action=Action.GIVE_UP)
    asked = getattr(failure, "retry_after", None) or 0.0
    delay = max(asked, dice * backoff_ceiling(its_rule, tries))
    return Decision(
        action=its_rule.action,
        delay=delay,
        is_push_back=isinstance(failure, errors.Throttled),
        defers_all=its_rule.action is Action.LATER and not isinstance(failure, errors.Missing),
    )


def backoff_ceiling(its_rule: RetryRule, tries: int) -> float:
    """The longest back-off after the `tries`-th failure, in seconds."""
    return float(min(its_rule.cap, its_rule.base * 2 ** min(tries - 1, 30)))


def table() -> str:
    """The rules as a table in Markdown, for people: every class of failure that an attempt may end with."""
    rows = [_row(_classes(cls), each) for cls, each in RULES.items()]
    rows += [_row([cls], each, ", before there is a devbox") for cls, each in AT_START.items()]
    head = ("failure", "what follows", "how often", "back-off")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * 4, *rows))


_OFTEN: Final[Mapping[Bound | None, str]] = {
    "attempts": "`--attempts` (3)",
    "scorings": "`scorings` (3)",
    "delays": f"{MAX_DELAYS} times, uses up no attempt",
    "interruptions": f"{MAX_INTERRUPTIONS} times, uses up no attempt",
    None: "until it works, uses up no attempt",
}


def _classes(cls: type[SweepError]) -> list[type[SweepError]]:
    """The classes of a rule: `cls`, and its subclasses that have no rule of their own."""
    below = (
        sub
        for sub in cls.__subclasses__()
        if sub not in RULES and sub.__module__ == errors.__name__  # the service has some of its own
    )
    return [cls, *(each for sub in below for each in _classes(sub))]


def _row(classes: Sequence[type[SweepError]], its_rule: RetryRule, where: str = "") -> tuple[str, str, str, str]:
    names = ", ".join(f"`{cls.__name__}`" for cls in classes)
    if its_rule.action in {Action.GIVE_UP, Action.STOP}:
        often, pause = "-", "-"
    else:
        often = _OFTEN[its_rule.bound]
        pause = f"up to {its_rule.base:g} s, doubling to {its_rule.cap:g} s" if its_rule.base else "none"
    return names + where, its_rule.action.value, often, pause
