"""Several arms in one sweep: each gets its share, and what it may use up."""

from itertools import islice

import pytest

from orchestrator.core.events import StageFinished
from orchestrator.core.records import Outcome
from orchestrator.testing.fakes import Script

from .conftest import MakeSweep, Sweep

TWO = [{"agent": "command:fast", "name": "fast"}, {"agent": "command:slow", "name": "slow"}]


def solved(sweep: Sweep) -> list[str]:
    """The arms of the trials, in the order in which they were solved."""
    finished = [event for event in sweep.events("stage.finished") if event.stage == "solve"]
    return [event.trial.split("/")[1] for event in finished]


def in_flight(sweep: Sweep, arm: str) -> int:
    """The most trials of an arm that were between start and release at one time."""
    now = most = 0
    for event in sweep.sink.events:
        if getattr(event, "trial", "").split("/")[1:2] == [arm]:
            now += event.kind == "run.started"
            now -= isinstance(event, StageFinished) and event.stage == "release"
            most = max(most, now)
    return most


def test_a_slow_arm_does_not_hold_back_the_others(make_sweep: MakeSweep) -> None:
    """Taken in turn, the slow one's trials would come to hold all four devboxes, and the fast one's would wait."""
    script = Script(solve=60, solve_for={"slow": 3600.0})
    sweep = make_sweep(scenarios=30, arms=TWO, devboxes=4, script=script).run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 60}
    assert list(islice(solved(sweep), 30)).count("fast") >= 28
    assert in_flight(sweep, "fast") >= 2
    assert in_flight(sweep, "slow") == 4


@pytest.mark.parametrize("devboxes", [1, 2, 3])
def test_arms_of_one_speed_go_side_by_side(make_sweep: MakeSweep, devboxes: int) -> None:
    """An early look compares like with like."""
    sweep = make_sweep(scenarios=10, arms=TWO, devboxes=devboxes).run()
    done = solved(sweep)
    assert all(abs(done[:count].count("fast") - done[:count].count("slow")) <= 2 for count in range(len(done)))


def test_an_arm_has_no_more_trials_in_flight_than_it_may(make_sweep: MakeSweep) -> None:
    arms = [TWO[0], TWO[1] | {"agents": 1}]
    sweep = make_sweep(scenarios=8, arms=arms, devboxes=4).run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 16}
    assert in_flight(sweep, "slow") == 1
    assert in_flight(sweep, "fast") >= 3


def test_an_arm_whose_cost_is_used_up_starts_no_trial_and_the_others_finish(make_sweep: MakeSweep) -> None:
    arms = [TWO[0], TWO[1] | {"cost": 2.5}]
    sweep = make_sweep(scenarios=6, arms=arms, devboxes=1)
    sweep.ledger.costs["slow"] = 2.5
    sweep.run()
    assert [result["arm"] for result in sweep.results] == ["fast"] * 6
    assert sweep.stopping.reason == "the cost of arm slow, 2.5, is used up (2.50 USD); raise it to continue"


def test_an_arm_that_has_finished_is_not_stopped_by_its_cost(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=2, arms=[TWO[0] | {"cost": 1.0}]).run()
    sweep.ledger.costs["fast"] = 2.0
    sweep.run()
    assert sweep.stopping.reason is None
    assert sweep.ledger.outcomes == {Outcome.SCORED: 2}


def test_a_spent_arm_that_is_put_off_does_not_keep_the_sweep_from_its_end(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=2, arms=[TWO[0] | {"cost": 1.0}], devboxes=1, script=Script(failing_boots=1))

    def spend(*_: object) -> float:
        sweep.ledger.costs["fast"] = 1.0
        return 0.5

    object.__setattr__(sweep.ctx, "dice", spend)
    sweep.run()
    assert "cost of arm fast" in (sweep.stopping.reason or "")
    assert sweep.results == []
