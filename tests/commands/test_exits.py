"""The exit code of a sweep, decided from its ledger."""

import pytest

from orchestrator.commands.exit_codes import (
    ALL_FLAGGED,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    UNDER,
    all_flagged,
    verdict,
)
from orchestrator.core.config import BarsConfig
from orchestrator.core.events import TrialFinished
from orchestrator.core.ledger import Ledger, fold
from orchestrator.core.plan import Plan
from orchestrator.core.records import Flag, ScenarioSummary

PLAN = Plan(
    benchmark="b",
    scenarios=tuple(ScenarioSummary(id=name, name=name) for name in ("x", "y")),
    arms=("one", "other"),
    trials=1,
)


def ended(**flags: list[Flag]) -> Ledger:
    """The trials of `one` have a score and these flags, each by its scenario; those of `other` a score."""
    ours = [
        TrialFinished(trial=f"{scenario}/one/1", attempt=1, result={"outcome": "scored", "score": 0.0, "flags": each})
        for scenario, each in flags.items()
    ]
    others = [
        TrialFinished(trial=f"{scenario}/other/1", attempt=1, result={"outcome": "scored", "score": 1.0})
        for scenario in ("x", "y")
    ]
    return fold([*ours, *others])


def code(ledger: Ledger, *, is_stopped: bool = False) -> int:
    return verdict(list(PLAN), PLAN, ledger, BarsConfig(), is_stopped=is_stopped)[0]


@pytest.mark.parametrize(
    ("flags", "arms"),
    [
        ({"x": [Flag.AGENT_CRASHED], "y": [Flag.AGENT_CRASHED, Flag.SCORED_LIVE]}, ["one"]),
        ({"x": [Flag.AGENT_CRASHED], "y": [Flag.NO_PATCH]}, ["one"]),
        ({"x": [Flag.AGENT_CRASHED], "y": []}, []),
        ({"x": [Flag.SCORED_LIVE], "y": [Flag.SCORED_LIVE]}, []),
        ({"x": [Flag.SCORED_LIVE], "y": [Flag.AGENT_CRASHED]}, []),
    ],
)
def test_an_arm_whose_every_result_is_flagged_makes_it_1(flags: dict[str, list[Flag]], arms: list[str]) -> None:
    """But for the flag that every result has on an endpoint that is not ours."""
    ledger = ended(**flags)
    assert all_flagged(PLAN, ledger) == arms
    assert code(ledger) == (EXIT_FAILED if arms else EXIT_OK)


def test_an_arm_without_results_is_not_flagged_and_an_interrupted_sweep_stays_one() -> None:
    assert all_flagged(PLAN, ended()) == []
    half = ended(x=[Flag.AGENT_CRASHED])
    assert all_flagged(PLAN, half) == ["one"]
    assert (code(half), code(half, is_stopped=True)) == (EXIT_FAILED, EXIT_INTERRUPTED)


def test_a_failed_trial_makes_it_1() -> None:
    failure = {"class": "DevboxLost", "message": "", "stage": "boot"}
    lost = TrialFinished(trial="y/one/1", attempt=1, result={"outcome": "failed", "failure": failure})
    ledger = ended(x=[])
    ledger.apply(lost)
    assert code(ledger) == EXIT_FAILED
    assert code(ledger, is_stopped=True) == EXIT_FAILED


@pytest.mark.parametrize(
    ("bars", "told"),
    [
        (BarsConfig(), []),
        (BarsConfig(accept=0.75), None),
        (BarsConfig(accept=0.767), ["--accept 76.7% is missed: 3 of 4 trials have a score. The exit code is 1."]),
        (
            BarsConfig(accept=0.5, fail_under=0.5),
            [UNDER.format(0.5, "one", "0")],
        ),
        (BarsConfig(accept=0.5, fail_under=0.0), None),
        (BarsConfig(fail_under=0.0), []),
    ],
)
def test_bars_decide_if_failed_trials_and_low_means_make_it_1(bars: BarsConfig, told: list[str] | None) -> None:
    """Three of four trials have a score, the mean of one arm is 0, of the other 1. A bar that is missed is named."""
    failure = {"class": "DevboxLost", "message": "", "stage": "boot"}
    ledger = ended(x=[])
    ledger.apply(TrialFinished(trial="y/one/1", attempt=1, result={"outcome": "failed", "failure": failure}))
    assert verdict(list(PLAN), PLAN, ledger, bars, is_stopped=False) == (
        (EXIT_OK, []) if told is None else (EXIT_FAILED, told)
    )


def test_trials_that_never_ran_have_no_score_and_a_signal_is_told_whatever_the_bars() -> None:
    half = ended(x=[])
    keys = list(PLAN)
    assert verdict(keys, PLAN, half, BarsConfig(accept=0.75), is_stopped=False) == (EXIT_OK, [])
    assert verdict(keys, PLAN, half, BarsConfig(accept=0.75, fail_under=0.9), is_stopped=True) == (EXIT_INTERRUPTED, [])
    unscored = fold([])
    assert verdict(keys, PLAN, unscored, BarsConfig(fail_under=0.1), is_stopped=False)[1] == [
        f"--fail-under 0.1 is missed: the mean of {arm} is unknown. The exit code is 1." for arm in PLAN.arms
    ]


def test_bars_do_not_excuse_an_arm_whose_every_result_is_flagged() -> None:
    ledger = ended(x=[Flag.AGENT_CRASHED], y=[Flag.AGENT_CRASHED])
    told = verdict(list(PLAN), PLAN, ledger, BarsConfig(accept=0.5, fail_under=0.0), is_stopped=False)
    assert told == (EXIT_FAILED, [ALL_FLAGGED.format("one")])
