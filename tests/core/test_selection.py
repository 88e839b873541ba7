"""The selection of trials to run now, with the reasons."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from orchestrator.core.errors import UsageError
from orchestrator.core.events import AttemptEnded, Event, StageEntered, TrialFinished, TrialReopened
from orchestrator.core.ledger import Ledger, fold
from orchestrator.core.plan import Plan
from orchestrator.core.records import Flag, ScenarioSummary
from orchestrator.core.selection import Selection, TrialAction, decisions, named, parse
from orchestrator.core.stages import Stage

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
PLAN = Plan(
    benchmark="six",
    scenarios=tuple(ScenarioSummary(id=f"scn_{name}", name=name) for name in NAMES),
    arms=("arm",),
    trials=1,
)


def finished(name: str, *, failure: str | None = None, flags: Iterable[str] = ()) -> Event:
    result: dict[str, Any] = {"outcome": "failed" if failure else "scored", "flags": list(flags)}
    result["failure"] = {"class": failure, "message": "it went wrong", "stage": "solve"} if failure else None
    return TrialFinished(trial=f"scn_{name}/arm/1", attempt=1, result=result)


def begun(name: str, *, number: int = 1, error: str | None = None) -> list[Event]:
    trial = f"scn_{name}/arm/1"
    events: list[Event] = [StageEntered(trial=trial, attempt=number, stage=Stage.START)]
    if error is not None:
        failure = {"class": error, "message": "it went wrong", "stage": "start"}
        events.append(AttemptEnded(trial=trial, attempt=number, failure=failure, counted=True))
    return events


#: Scored; scored with a flag; failed with a class; failed with another; in flight; tried in vain. Nothing of a seventh.
NIGHT = fold(
    [
        finished("ant"),
        finished("bee", flags=["agent_timed_out"]),
        finished("cat", failure="DevboxLost"),
        finished("dog", failure="AgentTimedOut"),
        *begun("eel"),
        *begun("fox", error="Throttled"),
    ]
)


def actions(selection: Selection, ledger: Ledger = NIGHT) -> Mapping[str, TrialAction]:
    found = decisions(PLAN, ledger, selection)
    return {each.trial.scenario.removeprefix("scn_"): each.action for each in found}


def again(actions: Mapping[str, TrialAction]) -> set[str]:
    return {name for name, action in actions.items() if action is TrialAction.AGAIN}


def now(actions: Mapping[str, TrialAction]) -> set[str]:
    return {
        name for name, action in actions.items() if action in {TrialAction.AGAIN, TrialAction.TAKE_UP, TrialAction.RUN}
    }


def test_without_a_selection_finished_trials_stay_and_pending_ones_run() -> None:
    assert actions(Selection()) == {
        "ant": TrialAction.KEEP,
        "bee": TrialAction.KEEP,
        "cat": TrialAction.KEEP,
        "dog": TrialAction.KEEP,
        "eel": TrialAction.TAKE_UP,
        "fox": TrialAction.RUN,
    }
    assert set(actions(Selection(), Ledger()).values()) == {TrialAction.RUN}


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ("DevboxLost", {"cat"}),
        ("devbox_lost", {"cat"}),
        ("AgentTimedOut", {"bee", "dog"}),
        ("agent_timed_out", {"bee", "dog"}),
        ("DevboxLost, AgentTimedOut", {"bee", "cat", "dog"}),
        ("WorldError", {"cat"}),
        ("AgentError", {"bee", "dog"}),
        ("gather_incomplete", set()),
        ("ScoringFault", set()),
    ],
)
def test_a_failure_names_trials_that_failed_so_or_carry_the_flag_and_all_failures_of_its_kind(
    wish: str, names: set[str]
) -> None:
    """Pending trials run beside them."""
    found = actions(parse([wish], []))
    assert again(found) == names
    assert now(found) == names | {"eel", "fox"}


def test_a_failure_that_does_not_exist_is_answered_with_near_ones() -> None:
    with pytest.raises(UsageError, match=r"--retry DevboxLots: .* Did you mean DevboxLost"):
        parse(["StageTimeout,DevboxLots"], [])
    with pytest.raises(UsageError, match="Did you mean agent_crashed"):
        parse(["agent_crash"], [])
    with pytest.raises(UsageError, match=r"There are: AgentCrashed, .*, trajectory_unread\."):
        parse(["x"], [])
    with pytest.raises(UsageError, match="--retry UsageError"):
        parse(["UsageError"], [])


@pytest.mark.parametrize(
    ("only", "names", "reopened"),
    [
        ("ant", {"ant"}, {"ant"}),
        ("scn_ant,fox", {"ant", "fox"}, {"ant"}),
        ("[ab]*", {"ant", "bee"}, {"ant", "bee"}),
        ("failed", {"cat", "dog"}, {"cat", "dog"}),
        ("unscored", {"cat", "dog", "eel", "fox"}, {"cat", "dog"}),
        ("failed,eel", {"cat", "dog", "eel"}, {"cat", "dog"}),
    ],
)
def test_a_selection_runs_alone_whether_finished_or_not(only: str, names: set[str], reopened: set[str]) -> None:
    found = actions(parse([], [only]))
    assert now(found) == names
    assert again(found) == reopened
    assert {name for name, action in found.items() if action is TrialAction.LEAVE} == {"eel", "fox"} - names


def test_a_trial_must_match_both_selection_and_failure() -> None:
    found = actions(parse(["AgentTimedOut"], ["bee,cat,fox"]))
    assert again(found) == {"bee"}
    assert now(found) == {"bee", "fox"}


def test_a_scenario_that_does_not_exist_is_answered_with_near_ones() -> None:
    with pytest.raises(UsageError, match=r"--only 'bea' matches no scenario\. Did you mean bee"):
        named(PLAN, parse([], ["ant,bea"]))


def test_a_reopened_trial_is_pending() -> None:
    ledger = fold([finished("ant"), TrialReopened(trial="scn_ant/arm/1")])
    assert actions(Selection(), ledger)["ant"] is TrialAction.RUN


def test_a_devbox_of_a_trial_that_is_reopened_is_still_to_be_released() -> None:
    """The process died between a result and its release, and the next one was asked for the trial again."""
    ledger = fold([*begun("ant"), finished("ant"), TrialReopened(trial="scn_ant/arm/1"), *begun("ant", number=2)])
    assert [attempt.number for _, attempt in ledger.unreleased()] == [2, 1]
    assert not any(count < 0 for count in ledger.stages.values())


def test_every_verdict_says_why() -> None:
    whys = {
        each.trial.scenario: each.why for each in decisions(PLAN, NIGHT, parse(["DevboxLost"], ["cat,dog,eel,bee"]))
    }
    assert whys == {
        "scn_ant": "scored",
        "scn_bee": "scored (agent_timed_out)",
        "scn_cat": "failed with DevboxLost: matches --retry and --only",
        "scn_dog": "failed with AgentTimedOut",
        "scn_eel": "in flight: start",
        "scn_fox": "not in --only",
    }
    assert list(decisions(PLAN, NIGHT, Selection()))[-1].why == "attempt 1 ended with Throttled"
    assert {each.why for each in decisions(PLAN, Ledger(), Selection())} == {"never begun"}


@pytest.mark.parametrize("nothing", ["", " , "])
def test_a_list_of_nothing_does_not_mean_everything(nothing: str) -> None:
    """A script may have come to an empty list."""
    with pytest.raises(UsageError, match="--only names nothing"):
        parse([], [nothing])
    with pytest.raises(UsageError, match="--retry names nothing"):
        parse([nothing], [])
    assert not parse([], [])


@pytest.mark.parametrize("flag", Flag)
def test_each_flag_can_be_asked_for(flag: Flag) -> None:
    assert flag in parse([flag], []).retry
    ledger = fold([TrialFinished(trial="s/a/1", attempt=1, result={"outcome": "scored", "flags": [flag]})])
    plan = Plan(benchmark="b", scenarios=(ScenarioSummary(id="s", name="s"),), arms=("a",), trials=1)
    assert [each.action for each in decisions(plan, ledger, parse([flag], []))] == [TrialAction.AGAIN]
