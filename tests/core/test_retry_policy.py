"""Reactions to failures, decided by whose fault they were."""

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.commands.docs import page
from orchestrator.core import errors, retry_policy
from orchestrator.core.errors import SweepError, Throttled, Unavailable
from orchestrator.core.retry_policy import AT_START, RULES, Action, backoff_ceiling, decide, rule
from orchestrator.core.stages import Stage
from orchestrator.service.errors import ServiceError


def leaves(cls: type[SweepError]) -> Iterator[type[SweepError]]:
    """The classes below one that are raised: those that nothing derives from, and those with a rule of their own."""
    if not cls.__subclasses__() or cls in RULES:
        yield cls
    for below in cls.__subclasses__():
        yield from leaves(below)


#: Those of the tree itself: the service has a few of its own below it.
LEAVES = [cls for cls in leaves(SweepError) if cls.__module__ == errors.__name__ and not issubclass(cls, ServiceError)]


@pytest.mark.parametrize("cls", LEAVES)
def test_every_failure_has_a_rule(cls: type[SweepError]) -> None:
    assert isinstance(rule(cls("x")), retry_policy.RetryRule)


def test_the_manual_has_the_table_as_the_code_makes_it() -> None:
    assert retry_policy.table() in page("failures", commands=None)


def test_the_table_names_every_failure() -> None:
    lines = retry_policy.table().splitlines()[2:]
    assert len(lines) == len(RULES) + len(AT_START)
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in lines)))
    assert {cls.__name__ for cls in LEAVES} <= named


@pytest.mark.parametrize("cls", AT_START)
def test_a_start_that_is_refused_for_now_uses_up_no_attempt(cls: type[SweepError]) -> None:
    failure = cls("x")
    assert rule(failure, Stage.START).action is Action.LATER
    assert not rule(failure, Stage.START).is_counted
    assert all(rule(failure, stage).is_counted for stage in Stage if stage is not Stage.START)


def test_a_back_off_never_holds_a_devbox() -> None:
    """A run that is scored again needs the devbox it has, so it waits for nothing."""
    assert all(each.base == 0 for each in RULES.values() if each.action is Action.SCORE_AGAIN)


def test_the_tree_in_the_docstring_of_the_errors_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    above = [(-1, "Exception")]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([ │├└─]*)(\w+)(.*)", line)
        if match is None or not hasattr(errors, match[2]):
            continue
        names = [match[2], *re.findall(r"· (\w+)", match[3])]
        while above[-1][0] >= len(match[1]):
            above.pop()
        drawn |= dict.fromkeys(names, above[-1][1])
        above.append((len(match[1]), match[2]))
    real = {
        name: cls.__base__.__name__
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, SweepError) and cls.__base__ is not None
    }
    assert drawn == real


@given(tries=st.integers(1, 10_000), dice=st.floats(0, 1, exclude_max=True), cls=st.sampled_from(LEAVES))
def test_a_back_off_is_jittered_in_full_and_bounded(tries: int, dice: float, cls: type[SweepError]) -> None:
    its_rule = rule(cls("x"))
    decision = decide(cls("x"), its_rule, tries=tries, allowed=tries + 1, dice=dice)
    assert 0 <= decision.delay <= backoff_ceiling(its_rule, tries) <= its_rule.cap
    if decision.action in {Action.NEW_ATTEMPT, Action.SCORE_AGAIN}:
        assert decision.delay == pytest.approx(dice * min(its_rule.cap, its_rule.base * 2.0 ** min(tries - 1, 60)))


@given(
    dice=st.floats(0, 1, exclude_max=True), asked=st.floats(0, 100_000), cls=st.sampled_from([Throttled, Unavailable])
)
def test_a_back_off_is_never_shorter_than_the_endpoint_asked(
    dice: float, asked: float, cls: type[Throttled | Unavailable]
) -> None:
    failure = cls("x", retry_after=asked)
    assert decide(failure, rule(failure), tries=1, allowed=3, dice=dice).delay >= asked


def test_the_world_is_given_up_on_after_as_many_tries_as_are_allowed() -> None:
    its_rule = rule(Unavailable("x"))
    actions = [decide(Unavailable("x"), its_rule, tries=tries, allowed=3, dice=0).action for tries in (1, 2, 3, 4)]
    assert actions == [Action.NEW_ATTEMPT, Action.NEW_ATTEMPT, Action.GIVE_UP, Action.GIVE_UP]


def test_only_throttling_asks_for_fewer_devboxes() -> None:
    pushing = {cls for cls in LEAVES if decide(cls("x"), rule(cls("x")), tries=1, allowed=3, dice=0).is_push_back}
    assert pushing == {Throttled}


def test_failures_that_stop_a_sweep_stop_it_however_many_tries_are_left() -> None:
    its_rule = rule(errors.Unauthorized("x"))
    assert decide(errors.Unauthorized("x"), its_rule, tries=1, allowed=99, dice=0.5).action is Action.STOP
