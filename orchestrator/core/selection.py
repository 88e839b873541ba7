"""Which trials of a sweep run now, and why: what is owed, and what is run again because somebody asks. Pure.

A sweep obeys these verdicts and `--dry-run` prints them, so that the two cannot disagree.
"""

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Final

from orchestrator.core.errors import AgentError, ScoringFault, SweepError, Unsupported, UsageError, WorldError
from orchestrator.core.ledger import Ledger, Trial
from orchestrator.core.plan import Plan, select
from orchestrator.core.records import Flag, Outcome, TrialKey

#: Words that select trials by how they ended.
KINDS: Final = frozenset({"failed", "unscored"})
#: The trees of failures that a trial can end with.
_ROOTS: Final = (WorldError, AgentError, Unsupported, ScoringFault)


class Fate(StrEnum):
    """What becomes of a trial when the sweep goes on."""

    AGAIN = "run again"
    """It is finished, and asked for once more."""
    TAKE_UP = "take up"
    """An attempt is in flight on the endpoint."""
    RUN = "run"
    """It is owed, and nothing of it is in flight."""
    LEAVE = "leave"
    """It is owed, but not selected; it stays owed."""
    KEEP = "keep"
    """It is finished and stays so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of a trial, and why, in words."""

    trial: TrialKey
    fate: Fate
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """What somebody asks to be run again: finished trials of certain failures or flags, or of a selection.

    `retry` are names in the form of flags, subclasses of a failure included. `only` is a selection of scenarios (names,
    ids, globs, `failed`, `unscored`) outside of which nothing runs.
    """

    retry: frozenset[str] = frozenset()
    only: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.retry or self.only)


def ask(retry: Sequence[str], only: Sequence[str]) -> Again:
    """What `--retry` and `--only` ask for; each may be a list with commas.

    Raises UsageError for an unknown failure, and for a list of nothing, which must not mean everything.
    """
    wanted = [name for each in _split("--retry", retry) for name in _failures(each)]
    return Again(retry=frozenset(wanted), only=tuple(_split("--only", only)))


def _split(option: str, lists: Sequence[str]) -> list[str]:
    found = [word for each in lists for word in map(str.strip, each.split(",")) if word]
    if lists and not found:
        raise UsageError(f"{option} names nothing: name something, or leave it out.")
    return found


def _failures(name: str) -> list[str]:
    """A failure with all that are failures of its kind, or a flag; in the form of flags."""
    classes = {_flag(cls.__name__): cls for root in _ROOTS for cls in _tree(root)}
    flag = _flag(name)
    if flag in classes:
        return [_flag(cls.__name__) for cls in _tree(classes[flag])]
    if flag in set(Flag):
        return [flag]
    known = [cls.__name__ for cls in classes.values()]
    near = get_close_matches(name, [*known, *Flag], 3)
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join([*sorted(known), *Flag])}."
    raise UsageError(f"--retry {name}: no failure or flag is called so. {hint}")


def _tree(root: type[SweepError]) -> Iterator[type[SweepError]]:
    yield root
    for cls in root.__subclasses__():
        yield from _tree(cls)


def _flag(name: str) -> str:
    """`AgentTimedOut` as `agent_timed_out`: a scored trial has the flag, a failed one the class."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def named(plan: Plan, again: Again) -> frozenset[str]:
    """The ids of the scenarios that `again.only` names. Raises UsageError for one that the plan does not have."""
    names = [word for word in again.only if word not in KINDS]
    chosen = select(plan.scenarios, include=names, exclude=(), limit=None, option="--only") if names else ()
    return frozenset(scenario.id for scenario in chosen)


def verdicts(plan: Plan, ledger: Ledger, again: Again) -> Iterator[Verdict]:
    """The verdict on every trial, in the plan's order. Raises UsageError as `named` does."""
    ids, kinds = named(plan, again), KINDS.intersection(again.only)
    hopeless = {scenario.id for scenario in plan.scenarios if scenario.unsupported}
    for key in plan:
        trial = ledger.trials.get(key) or Trial()
        is_selected = not again.only or key.scenario in ids or _is_one_of(kinds, trial)
        fate, why = _judge(key, trial, ledger, again, is_selected=is_selected)
        if fate in {Fate.RUN, Fate.AGAIN} and key.scenario in hopeless:
            why = f"{why}; it cannot run here"
        yield Verdict(trial=key, fate=fate, why=why)


def _is_one_of(kinds: AbstractSet[str], trial: Trial) -> bool:
    is_failed, is_unscored = trial.outcome is Outcome.FAILED, trial.outcome is not Outcome.SCORED
    return ("failed" in kinds and is_failed) or ("unscored" in kinds and is_unscored)


def _judge(key: TrialKey, trial: Trial, ledger: Ledger, again: Again, *, is_selected: bool) -> tuple[Fate, str]:
    attempt = ledger.under_way(key)
    if trial.outcome is not None:
        return _judge_finished(trial, again, is_selected=is_selected)
    if not is_selected:
        return Fate.LEAVE, f"not in --only; in flight: {attempt.stage}" if attempt else "not in --only"
    if attempt is not None:
        return Fate.TAKE_UP, f"in flight: {attempt.stage}"
    if trial.failures:
        return Fate.RUN, f"attempt {trial.last_ended} ended with {trial.failures[-1]['failure']['class']}"
    return Fate.RUN, "reopened before, not begun since" if trial.attempts else "never begun"


def _judge_finished(trial: Trial, again: Again, *, is_selected: bool) -> tuple[Fate, str]:
    ended, kind = f"failed with {trial.failure}" if trial.failure else str(trial.outcome), _flag(trial.failure or "")
    if flags := [flag for flag in trial.flags if flag != kind]:
        ended = f"{ended} ({', '.join(flags)})"
    signs = {*trial.flags, kind}
    is_asked = is_selected and (not again.retry or not again.retry.isdisjoint(signs))
    if not again or not is_asked:
        return Fate.KEEP, ended
    options = [option for option, words in (("--retry", again.retry), ("--only", again.only)) if words]
    return Fate.AGAIN, f"{ended}: matches {' and '.join(options)}"
