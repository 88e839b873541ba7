"""The exit code of a sweep, decided from its ledger."""

import pytest

from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, all_flagged, exit_code
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
    return exit_code(list(PLAN), ledger, doubtful=all_flagged(PLAN, ledger), is_stopped=is_stopped)


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
