"""Waiting while the endpoint refuses: it holds neither a devbox nor a worker, and no trial pays for it."""

import pytest

from orchestrator.core.errors import Missing, ScoringFault, Throttled, Unavailable
from orchestrator.core.events import StageEntered
from orchestrator.core.records import Outcome, TrialKey
from orchestrator.engine.scheduler import ArmQueue
from orchestrator.testing.fakes import Script

from .conftest import MakeSweep


def test_a_start_that_is_refused_for_now_is_the_same_attempt_later(make_sweep: MakeSweep) -> None:
    faults = [Throttled("slow down", retry_after=90.0), Unavailable("restarting"), Throttled("slow down")]
    sweep = make_sweep(scenarios=2, devboxes=1, attempts=1, script=Script(faults={"start_run": list(faults)})).run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 2}
    assert {event.attempt for event in sweep.events("stage.entered")} == {1}
    assert sweep.events("attempt.ended") == []


def test_while_starts_are_refused_no_other_trial_is_begun(make_sweep: MakeSweep) -> None:
    """A storm costs one call for each worker and back-off, not one for each trial of the queue."""
    script = Script(faults={"start_run": [Throttled("slow down", retry_after=60.0)] * 8})
    sweep = make_sweep(scenarios=100, devboxes=4, script=script).run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 100}
    assert len(sweep.endpoint.runs) == 100
    early = {event.trial for event in sweep.sink.events[:40] if isinstance(event, StageEntered)}
    assert len(early) <= 8


def test_a_start_that_is_refused_for_ever_is_given_up_and_recorded(make_sweep: MakeSweep) -> None:
    script = Script(faults={"start_run": [Unavailable("this one never")] * 1000})
    sweep = make_sweep(scenarios=1, script=script, unreachable=1e6).run()
    assert [result["failure"]["class"] for result in sweep.results] == ["Unavailable"]


def test_a_scorers_fault_is_scored_again_at_once_because_its_devbox_is_held(make_sweep: MakeSweep) -> None:
    script = Script(broken_scorings=2, scoring=5.0)
    sweep = make_sweep(scenarios=1, script=script).run()
    assert [result["score"] for result in sweep.results] == [1.0]
    seconds = sweep.results[0]["stages"]["score"]["seconds"]
    assert 15 <= seconds < 16
    assert ScoringFault.__name__ not in str(sweep.results)


def test_the_time_in_which_an_image_comes_counts_for_no_limit(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, attempts=1, timeouts={"boot": 60}, script=Script(preparing=7200, boot=30)).run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 1}
    assert sweep.results[0]["stages"]["boot"]["seconds"] >= 7200
    sweep = make_sweep(scenarios=1, attempts=1, timeouts={"boot": 60}, script=Script(preparing=7200, boot=90)).run()
    assert sweep.results[0]["failure"]["class"] == "StageTimeout"


def test_a_trial_that_is_tried_again_waits_for_no_other(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=2, devboxes=2, script=Script(failing_boots=1, solve=3600)).run()
    kinds = [(event.kind, getattr(event, "attempt", None)) for event in sweep.sink.events]
    assert kinds.index(("stage.entered", 2)) < kinds.index(("trial.finished", 1))
    assert sweep.ledger.outcomes == {Outcome.SCORED: 2}


def test_a_retry_that_waits_for_room_in_its_arm_costs_no_turns_of_the_loop(make_sweep: MakeSweep) -> None:
    """Two trials of an arm with one agent: the first is tried again at once, and the second works for an hour."""
    arms = [{"agent": "command:work", "agents": 1}]
    sweep = make_sweep(scenarios=2, devboxes=2, arms=arms, script=Script(failing_boots=1, solve=3600.0))
    queue, takes = ArmQueue.take, 0

    def counted(self: ArmQueue) -> TrialKey | None:
        nonlocal takes
        takes += 1
        return queue(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArmQueue, "take", counted)
        sweep.run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 2}
    assert takes < 50


def test_a_start_that_something_is_missing_for_is_asked_for_less_and_less_often(make_sweep: MakeSweep) -> None:
    script = Script(faults={"scenario": [Missing("no such folder")] * 10_000})
    sweep = make_sweep(scenarios=1, script=script, unreachable=600.0).run()
    assert sweep.endpoint.calls["scenario"] < 60
