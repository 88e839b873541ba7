"""What a night is told of: looks at ledgers, at times that the tests choose."""

import random
from collections.abc import Iterable
from typing import Any, Final

import pytest
from scipy import stats

from orchestrator.core.config import ArmConfig, SweepConfig
from orchestrator.core.events import OrderGiven, StageEntered, TrialReopened
from orchestrator.core.ledger import Ledger
from orchestrator.core.stages import Stage
from orchestrator.view.alerts import Alert, NightWatch, Surroundings, binomial_tail, poisson_tail

from .conftest import failed, make_plan, scored

PLAN: Final = make_plan(*(f"scenario {number}" for number in range(400)))


def night(ledger: Ledger) -> NightWatch:
    """A watch that has had its first look."""
    watch = NightWatch(ledger, PLAN, PLAN)
    assert look(watch) == []
    return watch


def look(watch: NightWatch, *, elapsed: float = 0.0, budgets: dict[str, Any] | None = None, **seen: Any) -> list[Alert]:
    config = SweepConfig(benchmark="b", arms=(ArmConfig(agent="a", cost=20),), **(budgets or {}))
    return watch.look(Surroundings(config=config, now=1000.0 + elapsed, elapsed=elapsed, started=1000.0, **seen))


def finish(ledger: Ledger, scores: Iterable[float | None], **about: Any) -> None:
    for number, score in enumerate(scores, start=len(ledger.finished)):
        key = f"s{number}/a/1"
        ledger.apply(failed(key, **about) if score is None else scored(key, score, **about))


def told(alerts: list[Alert]) -> list[tuple[str, str]]:
    return [(alert.kind, alert.words) for alert in alerts]


def test_many_failures_of_one_cause_are_told_once_whatever_scenario_and_ids_they_name() -> None:
    ledger = Ledger()
    watch = night(ledger)
    for number in range(9):
        ledger.apply(failed(f"s{number}/a/1", message=f"scenario {number}: devbox dbx_{number}a1 is gone"))
    assert look(watch) == []
    ledger.apply(failed("s9/a/1", message="scenario 9: devbox dbx_9a1 is gone"))
    words = "10 trials failed of one cause, DevboxLost: scenario 0: devbox dbx_0a1 is gone"
    assert told(look(watch)) == [("failing", words)]
    finish(ledger, [None] * 10, message="scenario 1: devbox dbx_9a1 is gone")
    assert look(watch) == []
    assert told(look(watch, halted="no devbox came up")) == []

    watch = night(ledger)  # another process
    assert look(watch) == []
    ledger = Ledger()
    assert told(look(night(ledger), halted="no devbox came up")) == [
        ("failing", "The sweep stops itself: no devbox came up.")
    ]


def test_scores_that_collapse_are_told_by_arm_and_not_those_that_were_always_low() -> None:
    ledger = Ledger()
    watch = night(ledger)
    finish(ledger, [1.0, 0.0] * 40)
    assert look(watch) == []
    finish(ledger, [0.0] * 10)
    finish(ledger, [None] * 30, message="each is different, and 0 all the same")
    (alert,) = (alert for alert in look(watch) if alert.kind == "worse")
    assert (alert.about, alert.words) == (
        "a",
        "The last 40 trials of a have a mean of 0.000; those before, 0.500.",
    )
    ledger = Ledger()
    watch = night(ledger)
    finish(ledger, [0.0] * 60 + [0.1] + [0.0] * 60)
    assert look(watch) == []


def test_trials_that_hardly_end_any_more_are_told_while_others_wait_and_nobody_paused_it() -> None:
    def hours(*, is_paused: bool) -> list[tuple[str, str]]:
        ledger, alerts = Ledger(), list[Alert]()
        watch = night(ledger)
        for minute in range(1, 121):
            if minute == 80 and is_paused:
                ledger.apply(OrderGiven(order="pause", words="paused", by="me"))
            if minute < 80:
                finish(ledger, [1.0])
            alerts += look(watch, elapsed=60.0 * minute)
        return told(alerts)

    assert hours(is_paused=False) == [("slower", "7 trials ended in the last 30 minutes; 30 would have been usual.")]
    assert hours(is_paused=True) == []


def test_budgets_and_a_disk_are_told_when_they_are_nearly_used_up_each_once() -> None:
    ledger = Ledger()
    watch = night(ledger)
    ledger.apply(scored("s0/a/1", 1.0, usage={"cost_usd": 18.5}))
    budgets = {"max_cost": 20, "max_failures": 10, "deadline": "8h"}
    assert told(look(watch, budgets=budgets, deadline=2000.0, elapsed=890)) == [
        ("budget", "--max-cost is nearly used up: 18.5 of 20."),
        ("budget", "the cost of a is nearly used up: 18.5 of 20."),
    ]
    finish(ledger, [None] * 9, message="again")
    assert told(look(watch, budgets=budgets, deadline=2000.0, elapsed=910, free=10**9, size=10**12)) == [
        ("disk", "The disk of the run folder has 1.0 GB left."),
        ("budget", "--max-failures is nearly used up: 9 of 10."),
        ("budget", "The deadline (8h) is 2 minutes away."),
    ]
    assert look(watch, budgets=budgets, deadline=2000.0, elapsed=990, free=10**9, size=10**12) == []
    assert told(look(watch, budgets={"max_cost": 20.5})) == [("budget", "--max-cost is nearly used up: 18.5 of 20.5.")]

    for scenario in PLAN.scenarios[len(ledger.finished) :]:  # the last ones are under way: nothing is left to refuse
        ledger.apply(StageEntered(trial=f"{scenario.id}/a/1", attempt=1, stage=Stage.START))
    assert look(watch, budgets={"max_cost": 19}) == []


def test_a_reopened_trial_is_counted_anew() -> None:
    ledger = Ledger()
    watch = night(ledger)
    finish(ledger, [None] * 9, message="again")
    assert look(watch) == []
    ledger.apply(TrialReopened(trial="s3/a/1"))
    ledger.apply(failed("s3/a/1", message="again"))
    assert look(watch) == []


def test_a_reopened_trial_does_not_make_the_work_of_earlier_processes_that_of_this_one() -> None:
    ledger = Ledger()
    finish(ledger, [1.0] * 250)
    watch, alerts = night(ledger), list[Alert]()
    for minute in range(1, 121):
        finish(ledger, [1.0])
        if minute == 10:
            ledger.apply(TrialReopened(trial="s3/a/1"))
            ledger.apply(scored("s3/a/1", 1.0))
        alerts += look(watch, elapsed=60.0 * minute)
    assert told(alerts) == []


def test_nights_that_are_as_usual_to_their_end_give_no_alarm() -> None:
    """Fifty nights of 400 trials, a look after each."""
    dice, alarms = random.Random(7), 0
    for _ in range(50):
        ledger, rate, elapsed = Ledger(), dice.uniform(0.1, 0.9), 0.0
        watch = night(ledger)
        for _ in range(400):
            elapsed += dice.expovariate(1 / 60)
            finish(ledger, [float(dice.random() < rate)])
            alarms += len(look(watch, elapsed=elapsed))
    assert alarms <= 1


@pytest.mark.parametrize(("count", "of", "chance"), [(0, 20, 0.5), (3, 40, 0.3), (40, 40, 0.2), (7, 100, 1.0)])
def test_the_chances_are_those_of_scipy(count: int, of: int, chance: float) -> None:
    assert binomial_tail(count, of, chance) == pytest.approx(stats.binom.cdf(count, of, chance), abs=1e-12)
    assert poisson_tail(count, of * chance) == pytest.approx(stats.poisson.cdf(count, of * chance), abs=1e-12)
