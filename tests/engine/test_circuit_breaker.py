"""Failures that are no trial's fault, and the number of them that stops a sweep."""

import pytest

from orchestrator.core.errors import (
    AgentCrashed,
    AgentSetupFailed,
    DevboxFailed,
    DevboxLost,
    Refused,
    ScoringFault,
    StageTimeout,
    SweepError,
    Throttled,
    Unavailable,
)
from orchestrator.core.ledger import Trial
from orchestrator.core.records import Flag, Outcome
from orchestrator.core.stages import Stage
from orchestrator.engine.circuit_breaker import Breaker


class Told:
    """A breaker that is told of failures one after another, a minute apart."""

    def __init__(self, *, same_failures: int = 3, unreachable: float = 600.0) -> None:
        self.breaker = Breaker(same_failures=same_failures, unreachable=unreachable)
        self.now = 1000.0

    def fail(self, error: SweepError, stage: Stage | None, arm: str = "a", *, is_busy: bool = False) -> str | None:
        self.now += 60.0
        return self.breaker.failed(error, stage, arm, now=self.now, is_busy=is_busy)


@pytest.mark.parametrize("error", [DevboxFailed("no room"), StageTimeout("boot took longer than 900 s")])
def test_a_number_of_failed_boots_in_a_row_opens_the_breaker(error: SweepError) -> None:
    told = Told()
    assert told.fail(error, Stage.BOOT, "a") is None
    assert told.fail(error, Stage.BOOT, "b") is None
    verdict = told.fail(error, Stage.BOOT, "c")
    assert verdict is not None
    assert verdict.startswith(f"3 devboxes in a row did not come up: {error}. Fix")


def test_a_boot_between_them_makes_them_start_again() -> None:
    told = Told()
    for _ in range(5):
        assert told.fail(DevboxFailed(), Stage.BOOT) is None
        assert told.fail(DevboxFailed(), Stage.BOOT) is None
        told.breaker.passed(Stage.BOOT, "a")


def test_installs_are_counted_for_each_arm() -> None:
    told = Told()
    for _ in range(2):
        assert told.fail(AgentSetupFailed("x"), Stage.PREPARE, "a") is None
        assert told.fail(AgentSetupFailed("x"), Stage.PREPARE, "b") is None
    told.breaker.passed(Stage.PREPARE, "b")
    assert told.fail(AgentSetupFailed("x"), Stage.PREPARE, "b") is None
    verdict = told.fail(AgentSetupFailed("npm: 404"), Stage.PREPARE, "a")
    assert verdict == "the agent of a could not be installed 3 times in a row: npm: 404. Fix its install step"


def test_an_install_that_the_endpoint_tried_is_an_install() -> None:
    told = Told(same_failures=2)
    assert told.fail(AgentSetupFailed("npm: 404"), Stage.BOOT, "a") is None
    assert told.fail(AgentSetupFailed("npm: 404"), Stage.BOOT, "b") is None
    verdict = told.fail(AgentSetupFailed("npm: 404"), Stage.BOOT, "a")
    assert verdict == "the agent of a could not be installed 2 times in a row: npm: 404. Fix its install step"


def test_an_open_breaker_stays_open() -> None:
    told = Told(same_failures=1)
    assert told.fail(DevboxFailed(), Stage.BOOT)
    assert told.fail(DevboxFailed(), Stage.BOOT)


@pytest.mark.parametrize("error", [Throttled("quota"), Unavailable("no route"), StageTimeout("start took too long")])
def test_an_endpoint_that_grants_no_run_for_too_long_opens_the_breaker(error: SweepError) -> None:
    told = Told(unreachable=600)
    assert [told.fail(error, Stage.START) for _ in range(10)] == [None] * 10
    verdict = told.fail(error, Stage.START)
    assert verdict is not None
    assert "10 minutes" in verdict
    assert str(error) in verdict


def test_a_run_that_is_granted_makes_the_time_start_again() -> None:
    told = Told(unreachable=600)
    for _ in range(5):
        assert [told.fail(Unavailable(), Stage.START) for _ in range(9)] == [None] * 9
        told.breaker.passed(Stage.START, "a")


def test_a_quota_is_not_used_up_for_good_while_devboxes_of_ours_are_alive() -> None:
    told = Told(unreachable=600)
    assert [told.fail(Throttled(), Stage.START, is_busy=True) for _ in range(50)] == [None] * 50
    assert [told.fail(Throttled(), Stage.START) for _ in range(9)] == [None] * 9
    assert told.fail(Throttled(), Stage.START)


def test_an_endpoint_that_does_not_answer_is_gone_though_agents_may_still_be_at_work() -> None:
    told = Told(unreachable=600)
    assert any(told.fail(Unavailable(), Stage.START, is_busy=True) for _ in range(12))


@pytest.mark.parametrize(
    ("error", "stage"),
    [
        (Refused(), Stage.START),
        (DevboxLost(), Stage.BOOT),
        (DevboxLost(), Stage.SOLVE),
        (Unavailable(), Stage.SCORE),
        (StageTimeout(), Stage.SOLVE),
        (AgentCrashed(), Stage.SOLVE),
        (ScoringFault(), Stage.SCORE),
        (Unavailable(), None),
    ],
)
def test_failures_that_may_be_a_trials_own_never_open_the_breaker(error: SweepError, stage: Stage | None) -> None:
    told = Told(same_failures=1, unreachable=1)
    assert not any(told.fail(error, stage) for _ in range(50))


def test_a_page_of_output_is_cut_to_a_message() -> None:
    verdict = Told(same_failures=1).fail(AgentSetupFailed("word " * 5000), Stage.PREPARE)
    assert verdict is not None
    assert len(verdict) < 600
    assert "\n" not in verdict


def crash(status: int = 127, *, score: float | None = 0.0) -> Trial:
    return Trial(outcome=Outcome.SCORED, score=score, flags=(Flag.AGENT_CRASHED,), exit_status=status)


PASSED = Trial(outcome=Outcome.SCORED, score=0.0, exit_status=0)
TIMED_OUT = Trial(outcome=Outcome.SCORED, score=0.0, flags=(Flag.AGENT_TIMED_OUT,))
NEVER_BEGUN = Trial(outcome=Outcome.FAILED, failure="DevboxFailed")


@pytest.mark.parametrize(
    "trials",
    [
        [crash()] * 3,
        [crash(score=None), crash(score=-1.0), crash()],
        [Trial(outcome=Outcome.FAILED, flags=(Flag.AGENT_CRASHED,), exit_status=127)] * 3,
        [NEVER_BEGUN, crash(), crash(), NEVER_BEGUN, crash()],
    ],
)
def test_an_agent_that_crashes_alike_in_each_trial_and_reaches_nothing_opens_the_breaker(trials: list[Trial]) -> None:
    verdict = Breaker(same_failures=3).crashed("mine", trials)
    assert verdict == "the agent of mine crashed in each of its 3 trials so far, with exit status 127"


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [crash(), crash()],
        [crash(), crash(), crash(score=0.1), crash()],
        [crash(), crash(), crash(), crash(1)],
        [PASSED, crash(), crash(), crash()],
        [crash(), crash(), crash(), TIMED_OUT],
        [NEVER_BEGUN] * 9,
        [TIMED_OUT] * 9,
    ],
)
def test_an_agent_that_ended_otherwise_even_once_is_not(trials: list[Trial]) -> None:
    assert Breaker(same_failures=3).crashed("mine", trials) is None
