"""Orders of a person to a sweep that runs: what they change, when, and what the journal keeps of them."""

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest

from orchestrator.core.config import SweepConfig
from orchestrator.core.errors import UsageError
from orchestrator.core.events import OrderGiven
from orchestrator.core.ledger import fold
from orchestrator.core.orders import Cancel, Order, Pause, Requeue, Set, Unpause
from orchestrator.core.records import TrialKey
from orchestrator.engine import lifecycle
from orchestrator.engine.budgets import Budgets
from orchestrator.engine.control import Control
from orchestrator.engine.worker import run_all
from orchestrator.testing.clock import run_virtually
from orchestrator.testing.fakes import Script

from .conftest import MakeSweep, Sweep

BEN = "ben (process 7)"


@dataclass
class Ordered:
    """A sweep that takes orders, and what it said and kept."""

    sweep: Sweep
    chosen: frozenset[TrialKey] = frozenset()
    kept: list[SweepConfig] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    control: Control = field(init=False)

    def run(self, disturb: Callable[["Ordered"], Awaitable[None]]) -> "Ordered":
        """Run the sweep, and disturb it once its trials may begin."""
        sweep = self.sweep

        async def keep(config: SweepConfig) -> None:
            self.kept.append(config)

        async def both() -> None:
            scheduler = sweep.scheduler()
            self.control = Control(
                ctx=sweep.ctx,
                plan=sweep.plan,
                chosen=self.chosen or sweep.plan,
                scheduler=scheduler,
                stopping=sweep.stopping,
                budgets=Budgets(config=sweep.ctx.config, ledger=sweep.ledger),
                keep=keep,
                fit=lambda _: None,
                tell=self.said.append,
            )
            await lifecycle.finish_canceled(sweep.ctx)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_all, sweep.ctx, scheduler, sweep.stopping)
                await anyio.sleep(20)
                await disturb(self)

        run_virtually(both)
        return self

    async def obey(self, order: Order) -> str:
        return await self.control.obey(order, BEN)

    @property
    def ends(self) -> dict[str, object]:
        """The failure of each trial's result, or its score, by scenario."""
        return {each["scenario"]: (each["failure"] or {}).get("class") or each["score"] for each in self.sweep.results}


def test_more_devboxes_begin_at_once_and_fewer_let_those_in_flight_finish(make_sweep: MakeSweep) -> None:
    in_flight: list[int] = []

    async def disturb(ordered: Ordered) -> None:
        for devboxes in (4, 1):
            await ordered.obey(Set(settings={"devboxes": str(devboxes)}))
            await anyio.sleep(5)
            in_flight.append(ordered.sweep.endpoint.alive)

    ordered = Ordered(make_sweep(scenarios=8, devboxes=2)).run(disturb)
    assert in_flight == [4, 4]
    assert ordered.sweep.ctx.limits.devboxes == 1
    assert [config.devboxes for config in ordered.kept] == [4, 1]
    assert ordered.said[0] == f"Set devboxes 4 (was 2), by {BEN}."
    assert set(ordered.ends.values()) == {1.0}
    assert len(ordered.sweep.results) == 8


def test_agents_rate_and_budgets_are_set_while_it_runs(make_sweep: MakeSweep) -> None:
    async def disturb(ordered: Ordered) -> None:
        await ordered.obey(Set(settings={"agents": "1", "rate": "300/min", "max-failures": "3"}, reason="calm"))

    ordered = Ordered(make_sweep(scenarios=2)).run(disturb)
    assert ordered.sweep.ctx.limits.agents == 1
    assert ordered.sweep.endpoint.rate == 5.0
    assert ordered.control.budgets.config.max_failures == 3
    (event,) = ordered.sweep.events("order.given")
    assert (event.order, event.by, event.reason) == ("set", BEN, "calm")
    assert event.settings == {"agents": 1, "rate": 5.0, "max_failures": 3}


def test_a_deadline_with_a_plus_sign_is_later_than_the_one_there_is(make_sweep: MakeSweep) -> None:
    async def disturb(ordered: Ordered) -> None:
        await ordered.obey(Set(settings={"deadline": "8h"}))
        before = ordered.control.budgets.deadline
        await ordered.obey(Set(settings={"deadline": "+2h"}))
        assert before is not None
        assert ordered.control.budgets.deadline == pytest.approx(before + 7200, abs=1.5)
        await ordered.obey(Set(settings={"deadline": "none"}))
        assert ordered.control.budgets.deadline is None

    Ordered(make_sweep(scenarios=1)).run(disturb)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devbox": "4"}, "devbox cannot be set while a sweep runs. Did you mean devboxes?"),
        ({"isolation": "none"}, "isolation cannot be set while a sweep runs. These can: devboxes, agents"),
        ({"devboxes": "many"}, "devboxes=many: must be a whole number"),
        ({"devboxes": "none"}, "devboxes=none: must be a whole number"),
        ({"rate": "fast"}, "rate: 'fast' is not a rate. Write for example 20/s"),
        ({"deadline": "+soon"}, "deadline=+soon: "),
        ({"max-cost": "-1"}, "max-cost=-1: must be greater than 0"),
    ],
)
def test_what_cannot_be_set_is_refused_and_nothing_changes(
    make_sweep: MakeSweep, settings: dict[str, str], message: str
) -> None:
    async def disturb(ordered: Ordered) -> None:
        with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
            await ordered.obey(Set(settings=settings))

    ordered = Ordered(make_sweep(scenarios=1)).run(disturb)
    assert not ordered.sweep.events("order.given")
    assert ordered.kept == []


def test_a_paused_sweep_starts_nothing_until_it_goes_on(make_sweep: MakeSweep) -> None:
    async def disturb(ordered: Ordered) -> None:
        assert await ordered.obey(Pause(reason="lunch")) == "paused; 2 trials in flight go on"
        await anyio.sleep(1000)
        assert len(ordered.sweep.results) == 2
        assert ordered.sweep.ledger.paused is not None
        assert ordered.sweep.ledger.paused.giver == "ben: lunch"
        with pytest.raises(UsageError, match="It is paused already, by ben"):
            await ordered.obey(Pause())
        await ordered.obey(Unpause())
        with pytest.raises(UsageError, match="It is not paused"):
            await ordered.obey(Unpause())

    ordered = Ordered(make_sweep(scenarios=6, devboxes=2)).run(disturb)
    assert len(ordered.sweep.results) == 6
    assert ordered.sweep.ledger.paused is None


def test_a_paused_sweep_of_which_nothing_is_left_ends(make_sweep: MakeSweep) -> None:
    async def disturb(ordered: Ordered) -> None:
        await ordered.obey(Pause())

    assert len(Ordered(make_sweep(scenarios=2, devboxes=2)).run(disturb).sweep.results) == 2


def test_canceled_trials_fail_by_name_and_release_their_devboxes(make_sweep: MakeSweep) -> None:
    async def disturb(ordered: Ordered) -> None:
        assert (
            await ordered.obey(Cancel(scenario="scenario-0")) == "canceled 1 trial of scenario-0, 1 of them in flight"
        )
        await ordered.obey(Cancel(scenario="scn_5", reason="known to hang"))
        with pytest.raises(UsageError, match="There is no scenario 'scenario-77' in it"):
            await ordered.obey(Cancel(scenario="scenario-77"))
        await anyio.sleep(30)
        with pytest.raises(UsageError, match="has its result already"):
            await ordered.obey(Cancel(scenario="scenario-0"))

    ordered = Ordered(make_sweep(scenarios=6, devboxes=2)).run(disturb)
    assert ordered.ends == {"scn_0": "Canceled", "scn_5": "Canceled", **{f"scn_{n}": 1.0 for n in range(1, 5)}}
    (hanging,) = [each for each in ordered.sweep.results if each["scenario"] == "scn_5"]
    assert hanging["failure"]["message"] == "canceled by ben: known to hang"
    assert not [event for event in ordered.sweep.events("stage.entered") if event.trial.startswith("scn_5")]
    assert not any(event.counted for event in ordered.sweep.events("attempt.ended"))
    assert ordered.sweep.endpoint.alive == 0
    assert ordered.sweep.ledger.unreleased() == []
    assert ordered.sweep.ledger.canceled == {}
    assert ordered.sweep.ledger.excused == 2, "a person's decision is no failure of the night"
    assert fold(ordered.sweep.sink.events) == ordered.sweep.ledger


def test_a_trial_that_begins_while_its_cancelation_is_written_is_ended(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def disturb(ordered: Ordered) -> None:
        sweep = ordered.sweep
        trial = sweep.ledger.trials[TrialKey("scn_0", "command", 1)]
        for _ in range(100_000):
            if trial.outcome is not None:
                break
            await anyio.sleep(0.01)
        assert trial.attempt is not None, "its devbox is still to be released"
        monkeypatch.setattr(sweep.sink, "_sync", lambda: 100.0)
        assert "0 of them in flight" in await ordered.obey(Cancel(scenario="scenario-1"))
        monkeypatch.setattr(sweep.sink, "_sync", lambda: 0.0)
        assert trial.attempt is None

    ordered = Ordered(make_sweep(scenarios=3, devboxes=1)).run(disturb)
    assert ordered.ends == {"scn_0": 1.0, "scn_1": "Canceled", "scn_2": 1.0}
    assert [event for event in ordered.sweep.events("stage.entered") if event.trial.startswith("scn_1")]
    assert ordered.sweep.endpoint.alive == 0


def test_a_cancelation_that_died_with_its_process_is_made_good(make_sweep: MakeSweep) -> None:
    """The order alone is durable: the process that resumes finishes the trial before it begins anything."""

    async def disturb(ordered: Ordered) -> None:
        ordered.sweep.stopping.cancel()

    sweep = make_sweep(scenarios=2, devboxes=1)
    order = OrderGiven(order="cancel", words="", by=BEN, trials=("scn_1/command/1",))
    run_virtually(lambda: sweep.sink.append(order))
    ordered = Ordered(sweep).run(disturb)
    assert ordered.ends == {"scn_1": "Canceled"}
    assert sweep.ledger.is_finished(TrialKey("scn_1", "command", 1))


def test_an_attempt_that_was_to_end_when_its_process_died_is_followed_by_another(make_sweep: MakeSweep) -> None:
    """Also where the same trial was canceled before: the latest order counts."""
    first = make_sweep(scenarios=1)

    async def die() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.conduct)
            await anyio.sleep(30)
            for order in ("cancel", "requeue"):
                await first.sink.append(OrderGiven(order=order, words="", by=BEN, trials=("scn_0/command/1",)))
            copy = list(first.sink.events)
            tasks.cancel_scope.cancel()
        first.sink.events[:] = copy

    run_virtually(die)
    ledger = fold(first.sink.events)
    assert set(ledger.requeued) == {TrialKey("scn_0", "command", 1)}
    assert ledger.canceled == {}
    second = make_sweep(scenarios=1, ledger=ledger, endpoint=first.endpoint)

    async def resume() -> None:
        await lifecycle.end_requeued(second.ctx)
        await run_all(second.ctx, second.scheduler(), second.stopping)

    run_virtually(resume)
    (result,) = second.results
    assert [each["attempt"] for each in result["attempts"]] == [1, 2]
    assert result["attempts"][0]["failure"]["class"] == "Requeued"
    assert second.endpoint.alive == 0


def test_requeued_trials_run_again_and_their_old_results_count_no_more(make_sweep: MakeSweep) -> None:
    async def disturb(ordered: Ordered) -> None:
        with pytest.raises(UsageError, match="waits for its turn already"):
            await ordered.obey(Requeue(scenario="scenario-3"))
        assert await ordered.obey(Requeue(scenario="scenario-0")) == "requeued 1 trial of scenario-0"
        await anyio.sleep(70)
        assert ordered.sweep.ledger.is_finished(TrialKey("scn_1", "command", 1))
        await ordered.obey(Requeue(scenario="scenario-1"))

    ordered = Ordered(make_sweep(scenarios=4, devboxes=2, script=Script(solve=40))).run(disturb)
    ledger = ordered.sweep.ledger
    assert {key.scenario: ledger.trials[key].outcome for key in ordered.sweep.plan} == dict.fromkeys(
        [f"scn_{n}" for n in range(4)], "scored"
    )
    assert [event.trial for event in ordered.sweep.events("trial.reopened")] == ["scn_1/command/1"]
    (ended,) = ordered.sweep.events("attempt.ended")
    assert (ended.trial, ended.failure["class"], ended.counted) == ("scn_0/command/1", "Requeued", False)
    assert ordered.sweep.endpoint.alive == 0
    assert fold(ordered.sweep.sink.events) == ledger


@pytest.mark.parametrize("scenario", ["scenario-1", "scenario-2"], ids=["at a worker", "not handed out"])
def test_a_trial_that_was_canceled_before_it_began_runs_once_when_it_is_requeued(
    make_sweep: MakeSweep, scenario: str
) -> None:
    """One waits with its worker for a devbox, the other is nobody's yet."""

    async def disturb(ordered: Ordered) -> None:
        await ordered.obey(Cancel(scenario=scenario))
        await ordered.obey(Requeue(scenario=scenario))
        await ordered.obey(Set(settings={"devboxes": "4"}))

    ordered = Ordered(make_sweep(scenarios=4, devboxes=1, script=Script(solve=40))).run(disturb)
    assert {each["scenario"]: each["score"] for each in ordered.sweep.results} == {f"scn_{n}": 1.0 for n in range(4)}
    assert sorted(each.trial for each in ordered.sweep.events("run.started")) == [
        f"scn_{n}/command/1" for n in range(4)
    ]
    assert ordered.sweep.stopping.fault is None


def test_a_trial_that_is_canceled_and_requeued_at_once_in_flight_runs_again(make_sweep: MakeSweep) -> None:
    """Its worker has it still, and gives it back, when its order to run again comes."""

    async def disturb(ordered: Ordered) -> None:
        await ordered.obey(Cancel(scenario="scenario-0"))
        while not ordered.sweep.ledger.is_finished(TrialKey("scn_0", "command", 1)):
            await anyio.lowlevel.checkpoint()
        while True:
            with suppress(UsageError):  # its devbox is released
                await ordered.obey(Requeue(scenario="scenario-0"))
                return
            await anyio.lowlevel.checkpoint()

    ordered = Ordered(make_sweep(scenarios=2, devboxes=1, script=Script(solve=40))).run(disturb)
    ledger = ordered.sweep.ledger
    assert [ledger.trials[key].score for key in ordered.sweep.plan] == [1.0, 1.0]


def test_what_this_process_was_not_asked_for_is_not_requeued(make_sweep: MakeSweep) -> None:
    async def disturb(ordered: Ordered) -> None:
        with pytest.raises(UsageError, match="asked for other trials than those of scenario-1"):
            await ordered.obey(Requeue(scenario="scenario-1"))

    Ordered(make_sweep(scenarios=2), chosen=frozenset({TrialKey("scn_0", "command", 1)})).run(disturb)


def test_a_trial_of_one_arm_and_number_alone_is_ordered_about(make_sweep: MakeSweep) -> None:
    async def disturb(ordered: Ordered) -> None:
        with pytest.raises(UsageError, match="There is no arm 'b': --arm command"):
            await ordered.obey(Cancel(scenario="scenario-0", arm="b"))
        with pytest.raises(UsageError, match="There is no trial 4 of scenario-0: there are 3"):
            await ordered.obey(Cancel(scenario="scenario-0", trial=4))
        await ordered.obey(Cancel(scenario="scenario-0", arm="command", trial=3))

    ordered = Ordered(make_sweep(scenarios=1, trials=3, devboxes=1)).run(disturb)
    assert [each["trial"] for each in ordered.sweep.results if each["failure"]] == [3]


def test_a_sweep_that_is_stopping_takes_no_orders(make_sweep: MakeSweep) -> None:
    async def disturb(ordered: Ordered) -> None:
        ordered.sweep.stopping.drain()
        with pytest.raises(UsageError, match="starts nothing new any more"):
            await ordered.obey(Set(settings={"devboxes": "4"}))

    Ordered(make_sweep(scenarios=3, devboxes=1)).run(disturb)
