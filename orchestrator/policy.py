"""What to do about a failure, decided by whose fault it was. Pure: the caller brings the numbers and the dice.

| failure | then |
|---|---|
| throttled, unavailable, devbox failed or lost, run lost, stage timeout | a new attempt after a back-off, counted |
| interrupted | a new attempt at once, not counted, a few times |
| scoring fault | score again on the same devbox; when that does not help, the trial failed |
| agent: crashed or timed out | an outcome: scored as it stands, or failed, as the user asked |
| agent: cannot be installed | a new attempt, counted: installs use the network |
| allowance used up | a new attempt after a back-off, not counted |
| conflicted: the thing was in a state that forbids it | a new attempt after a back-off, counted |
| refused otherwise, missing | the trial failed |
| unauthorized, usage, journal, ours | the sweep stops, with one message |
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from orchestrator import errors
from orchestrator.errors import SweepError


class Action(StrEnum):
    """What follows a failure."""

    NEW_ATTEMPT = "new attempt"
    SCORE_AGAIN = "score again"
    GIVE_UP = "give up"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What follows one class of failure; the back-off doubles from `base` to `cap` seconds."""

    action: Action
    base: float = 1.0
    cap: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows this failure, and in how many seconds; whether the endpoint asked for less."""

    action: Action
    delay: float = 0.0
    is_push_back: bool = False


RULES: Final[dict[type[SweepError], Rule]] = {
    errors.Throttled: Rule(action=Action.NEW_ATTEMPT, base=4.0, cap=300.0),
    errors.WorldError: Rule(action=Action.NEW_ATTEMPT),
    errors.Interrupted: Rule(action=Action.NEW_ATTEMPT, base=0.0),
    errors.Refused: Rule(action=Action.GIVE_UP),
    errors.Unauthorized: Rule(action=Action.STOP),
    errors.Conflicted: Rule(action=Action.NEW_ATTEMPT),
    errors.AgentError: Rule(action=Action.GIVE_UP),
    errors.AgentSetupFailed: Rule(action=Action.NEW_ATTEMPT),
    errors.ScoringFault: Rule(action=Action.SCORE_AGAIN),
    errors.SweepError: Rule(action=Action.STOP),
}


def rule(failure: SweepError) -> Rule:
    """The rule of the nearest class in the tree."""
    return next(RULES[cls] for cls in type(failure).__mro__ if cls in RULES)


def decide(failure: SweepError, *, tries: int, allowed: int, dice: float) -> Decision:
    """What follows the `tries`-th failure of its kind when `allowed` are allowed; `dice` is uniform in [0, 1).

    Full jitter: the back-off is uniform between 0 and the doubled base, but never less than the endpoint asked for.
    """
    its_rule = rule(failure)
    if its_rule.action not in {Action.NEW_ATTEMPT, Action.SCORE_AGAIN}:
        return Decision(action=its_rule.action)
    if tries >= allowed:
        return Decision(action=Action.GIVE_UP)
    asked = getattr(failure, "retry_after", None) or 0.0
    delay = max(asked, dice * backoff_ceiling(its_rule, tries))
    return Decision(action=its_rule.action, delay=delay, is_push_back=isinstance(failure, errors.Throttled))


def backoff_ceiling(its_rule: Rule, tries: int) -> float:
    """The longest back-off after the `tries`-th failure, in seconds."""
    return float(min(its_rule.cap, its_rule.base * 2 ** min(tries - 1, 30)))
