"""The trials that run now, and why: those that are owed, and those that the user selects to run again. Pure.

A sweep obeys these decisions and `--dry-run` prints them, so that the two cannot disagree.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Final

from orchestrator.core.errors import AgentError, ByHand, ScoringFault, SweepError, Unsupported, UsageError, WorldError
from orchestrator.core.ledger import Ledger, Trial
from orchestrator.core.plan import Plan, select
from orchestrator.core.records import Flag, Outcome, TrialKey

#: Words that select trials by how they ended.
KINDS: Final = frozenset({"failed", "unscored"})
#: The trees of failures that a trial can end with.
_ROOTS: Final = (WorldError, AgentError, ByHand, Unsupported, ScoringFault)


class TrialAction(StrEnum):
    """The action on a trial when the sweep continues."""

    AGAIN = "run again"
    """It is finished, and selected."""
    TAKE_UP = "take up"
    """An attempt is in flight on the endpoint."""
    RUN = "run"
    """It is owed, and nothing of it is in flight."""
    LEAVE = "leave"
    """It is owed, but not selected; it stays owed."""
    KEEP = "keep"
    """It is finished and stays so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialDecision:
    """The action on a trial, and the reason, for people."""

    trial: TrialKey
    action: TrialAction
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The finished trials that the user wants to run again; false if none.

    `retry` are failures and flags, named like flags, subclasses of a failure included. `only` are words that select
    scenarios (names, ids, globs) or trials (`failed`, `unscored`); nothing outside of it runs.
    """

    retry: frozenset[str] = frozenset()
    only: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.retry or self.only)


def parse(retry: Sequence[str], only: Sequence[str]) -> Selection:
    """Parse `--retry` and `--only`; each value may be a list with commas.

    Raises UsageError for an unknown failure, and for an empty list, which must not mean everything.
    """
    classes = {_flag(cls.__name__): cls for root in _ROOTS for cls in _tree(root)}
    wanted: set[str] = set()
    for name in _split("--retry", retry):
        flag = _flag(name)
        if flag in classes:
            wanted |= {_flag(cls.__name__) for cls in _tree(classes[flag])}
        elif flag in set(Flag):
            wanted.add(flag)
        else:
            known = [cls.__name__ for cls in classes.values()]
            near = get_close_matches(name, [*known, *Flag], 3)
            hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join([*sorted(known), *Flag])}."
            raise UsageError(f"--retry {name}: unknown failure class or flag. {hint}")
    return Selection(retry=frozenset(wanted), only=tuple(_split("--only", only)))


def _split(option: str, lists: Sequence[str]) -> list[str]:
    found = [word for each in lists for word in map(str.strip, each.split(",")) if word]
    if lists and not found:
        raise UsageError(f"{option} names nothing: name something, or leave it out.")
    return found


def _tree(root: type[SweepError]) -> Iterator[type[SweepError]]:
    yield root
    for cls in root.__subclasses__():
        yield from _tree(cls)


def _flag(name: str) -> str:
    """`AgentTimedOut` as `agent_timed_out`: a scored trial has the flag, a failed one the class."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def named(plan: Plan, selection: Selection) -> frozenset[str]:
    """The ids of the scenarios that `selection.only` names. Raises UsageError for one that the plan does not have."""
    names = [word for word in selection.only if word not in KINDS]
    chosen = select(plan.scenarios, include=names, exclude=(), limit=None, option="--only") if names else ()
    return frozenset(scenario.id for scenario in chosen)


def decisions(plan: Plan, ledger: Ledger, selection: Selection) -> Iterator[TrialDecision]:
    """The decision on every trial, in the plan's order. Raises UsageError as `named` does."""
    ids, kinds = named(plan, selection), KINDS.intersection(selection.only)
    unsupported = {scenario.id for scenario in plan.scenarios if scenario.unsupported}
    given = " and ".join(
        option for option, words in (("--retry", selection.retry), ("--only", selection.only)) if words
    )
    for key in plan:
        trial, attempt = ledger.trials.get(key) or Trial(), ledger.under_way(key)
        is_failed, is_unscored = trial.outcome is Outcome.FAILED, trial.outcome is not Outcome.SCORED
        is_of_kind = ("failed" in kinds and is_failed) or ("unscored" in kinds and is_unscored)
        is_selected = not selection.only or key.scenario in ids or is_of_kind
        if trial.outcome is not None:
            action, kind = TrialAction.KEEP, _flag(trial.failure or "")
            why = f"failed with {trial.failure}" if trial.failure else str(trial.outcome)
            if flags := [flag for flag in trial.flags if flag != kind]:
                why = f"{why} ({', '.join(flags)})"
            is_asked = is_selected and (not selection.retry or not selection.retry.isdisjoint({*trial.flags, kind}))
            if selection and is_asked:
                action, why = TrialAction.AGAIN, f"{why}: matches {given}"
        elif not is_selected:
            action = TrialAction.LEAVE
            why = f"not in --only; in flight: {attempt.stage}" if attempt else "not in --only"
        elif attempt is not None:
            action, why = TrialAction.TAKE_UP, f"in flight: {attempt.stage}"
        else:
            action, why = TrialAction.RUN, "reopened before, not begun since" if trial.attempts else "never begun"
            if trial.failures:
                why = f"attempt {trial.last_ended} ended with {trial.failures[-1]['failure']['class']}"
        if action in {TrialAction.RUN, TrialAction.AGAIN} and key.scenario in unsupported:
            why = f"{why}; it cannot run here"
        yield TrialDecision(trial=key, action=action, why=why)
