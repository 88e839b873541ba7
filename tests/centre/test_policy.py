"""What to do about a failure, decided by whose fault it was."""

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import errors, policy
from orchestrator.errors import ServiceError, SweepError, Throttled, Unavailable
from orchestrator.policy import RULES, Action, backoff_ceiling, decide, rule

WORDS: dict[str, list[type[SweepError]]] = {
    "throttled": [errors.Throttled],
    "unavailable": [errors.Unavailable],
    "devbox failed or lost": [errors.DevboxFailed, errors.DevboxLost],
    "run lost": [errors.RunLost],
    "stage timeout": [errors.StageTimeout],
    "allowance used up": [errors.AllowanceUsedUp],
    "conflicted": [errors.Conflicted],
    "interrupted": [errors.Interrupted],
    "scoring fault": [errors.ScoringFault],
    "agent: crashed or timed out": [errors.AgentCrashed, errors.AgentTimedOut],
    "agent: cannot be installed": [errors.AgentSetupFailed],
    "refused otherwise": [errors.Refused],
    "missing": [errors.Missing],
    "unauthorized": [errors.Unauthorized],
    "usage": [errors.UsageError, errors.SandboxUnavailable],
    "journal": [errors.JournalError],
    "ours": [errors.InternalError],
}
SAYINGS = {
    "a new attempt": Action.NEW_ATTEMPT,
    "score again": Action.SCORE_AGAIN,
    "the trial failed": Action.GIVE_UP,
    "an outcome": Action.GIVE_UP,
    "the sweep stops": Action.STOP,
}


def leaves(cls: type[SweepError]) -> Iterator[type[SweepError]]:
    """The classes below one that are raised: those that nothing derives from, and those with a rule of their own."""
    if not cls.__subclasses__() or cls in RULES:
        yield cls
    for below in cls.__subclasses__():
        yield from leaves(below)


LEAVES = [cls for cls in leaves(SweepError) if not issubclass(cls, ServiceError)]


def rows() -> Iterator[tuple[str, str]]:
    """The cells of the table at the top of the file, one failure each."""
    for line in (policy.__doc__ or "").splitlines():
        if line.startswith("|") and "failure |" not in line and "---" not in line:
            left, then = (cell.strip() for cell in line.strip("|").split("|"))
            whose, colon, names = left.rpartition(":")
            if whose == "agent":
                yield left, then
            else:
                yield from ((name.strip(), then) for name in (whose if colon else names).split(","))


@pytest.mark.parametrize("cls", LEAVES)
def test_every_failure_has_a_rule(cls: type[SweepError]) -> None:
    assert isinstance(rule(cls("x")), policy.Rule)


def test_the_table_at_the_top_of_the_file_agrees_with_the_rules() -> None:
    for name, then in rows():
        [action] = {action for saying, action in SAYINGS.items() if then.startswith(saying)}
        assert {rule(cls("x")).action for cls in WORDS[name]} == {action}, name


def test_the_table_at_the_top_of_the_file_lists_every_failure() -> None:
    assert {name for name, _ in rows()} == set(WORDS)
    listed = {cls for classes in WORDS.values() for cls in classes}
    groups = {errors.SweepError, errors.WorldError, errors.AgentError}
    assert set(LEAVES) - listed - groups == set()


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
    decision = decide(cls("x"), tries=tries, allowed=tries + 1, dice=dice)
    assert 0 <= decision.delay <= backoff_ceiling(its_rule, tries) <= its_rule.cap
    if decision.action in {Action.NEW_ATTEMPT, Action.SCORE_AGAIN}:
        assert decision.delay == pytest.approx(dice * min(its_rule.cap, its_rule.base * 2.0 ** min(tries - 1, 60)))


@given(
    dice=st.floats(0, 1, exclude_max=True), asked=st.floats(0, 100_000), cls=st.sampled_from([Throttled, Unavailable])
)
def test_a_back_off_is_never_shorter_than_the_endpoint_asked(
    dice: float, asked: float, cls: type[Throttled | Unavailable]
) -> None:
    assert decide(cls("x", retry_after=asked), tries=1, allowed=3, dice=dice).delay >= asked


def test_the_world_is_given_up_on_after_as_many_tries_as_are_allowed() -> None:
    actions = [decide(Unavailable("x"), tries=tries, allowed=3, dice=0).action for tries in (1, 2, 3, 4)]
    assert actions == [Action.NEW_ATTEMPT, Action.NEW_ATTEMPT, Action.GIVE_UP, Action.GIVE_UP]


def test_only_throttling_asks_for_fewer_devboxes() -> None:
    pushing = {cls for cls in LEAVES if decide(cls("x"), tries=1, allowed=3, dice=0).is_push_back}
    assert pushing == {Throttled}


def test_what_stops_a_sweep_stops_it_however_many_tries_are_left() -> None:
    assert decide(errors.Unauthorized("x"), tries=1, allowed=99, dice=0.5).action is Action.STOP
