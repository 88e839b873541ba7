"""Budgets of a sweep, counted from its journal."""

from datetime import datetime, timedelta
from typing import Any

import anyio
import pytest

from orchestrator.core.config import SweepConfig, moment, resolve
from orchestrator.core.events import Event, StageEntered, StageFinished, SweepOpened, TrialFinished
from orchestrator.core.ledger import MAX_UNWATCHED_S, Ledger, fold
from orchestrator.core.records import Outcome
from orchestrator.core.stages import Stage
from orchestrator.engine.budgets import LOOK_EVERY_S, Budgets, watch
from orchestrator.engine.shutdown import Stopping
from orchestrator.engine.worker import run_all
from orchestrator.rundir.journal import now
from orchestrator.testing.clock import run_virtually
from orchestrator.testing.fakes import Script

from .conftest import MakeSweep, Sweep

NOON = datetime(2026, 11, 23, 12, 0)  # noqa: DTZ001 - this machine's time
HOUR = 3600.0


def config(**settings: Any) -> SweepConfig:
    return resolve({"benchmark": "b", "arms": [{"agent": "nop"}]} | settings)


def stage(name: str, at: float, *, trial: str = "s/a/1", attempt: int = 1, **facts: Any) -> list[Event]:
    """A stage that was entered and finished at a time."""
    return [
        StageEntered(trial=trial, attempt=attempt, stage=Stage(name), at=at),
        StageFinished(trial=trial, attempt=attempt, stage=Stage(name), seconds=1, at=at, facts=facts),
    ]


def solved(trial: str, cost: Any) -> list[Event]:
    before = [event for name in ("start", "boot", "prepare") for event in stage(name, 0.0, trial=trial)]
    return [*before, *stage("solve", 0.0, trial=trial, usage={"cost_usd": cost})]


def failed(trial: str, usage: dict[str, Any] | None = None) -> TrialFinished:
    failure = {"class": "AgentCrashed", "message": "no", "stage": "solve"}
    result = {"outcome": "failed", "score": None, "failure": failure, "usage": usage or {}}
    return TrialFinished(trial=trial, attempt=1, result=result)


def used_up(ledger: Ledger, *, now: float = 0.0, at: float | None = None, **settings: Any) -> str | None:
    return Budgets(config=config(**settings), ledger=ledger, deadline=at, now=lambda: now, wall=lambda: now).used_up()


def test_without_budgets_nothing_is_ever_used_up() -> None:
    assert used_up(fold([*solved("s/a/1", 1e9), failed("s/a/1")]), now=1e12) is None


def test_the_cost_of_every_attempt_counts_with_or_without_a_result() -> None:
    ledger = fold([*solved("s/a/1", 2.5), *solved("s/a/2", 2), *solved("s/a/3", 0.75)])
    assert ledger.cost == pytest.approx(5.25)
    assert used_up(ledger, max_cost=5.26) is None
    assert used_up(ledger, max_cost=5) == "--max-cost 5 is used up (5.25 USD); raise it to continue"


def test_a_cost_is_not_counted_twice_and_not_lost_where_the_stage_did_not_finish() -> None:
    ledger = fold([*solved("s/a/1", 2), failed("s/a/1", {"cost_usd": 2}), failed("s/a/2", {"cost_usd": 3})])
    assert ledger.cost == pytest.approx(5)


@pytest.mark.parametrize("cost", ["much", None, float("nan"), float("inf"), -3, [1]])
def test_an_invalid_cost_counts_as_nothing(cost: Any) -> None:
    assert fold(solved("s/a/1", cost)).cost == 0


def test_devbox_time_is_from_boot_to_release_or_until_now() -> None:
    up = [*stage("start", 0), *stage("boot", 100)]
    assert fold(up).devbox_seconds(now=400) == 300
    assert fold([*up, *stage("release", 1100)]).devbox_seconds(now=9999) == 1000
    two = [*up, *stage("start", 50, trial="s/a/2"), *stage("boot", 200, trial="s/a/2"), *stage("release", 600)]
    assert fold(two).devbox_seconds(now=1000) == 500 + 800
    assert used_up(fold(up), now=100 + 2 * HOUR, max_devbox_hours=2.01) is None
    assert used_up(fold(up), now=100 + 2 * HOUR, max_devbox_hours=2) == (
        "--max-devbox-hours 2 is used up (2.00); raise it to continue"
    )


def opened(at: float) -> SweepOpened:
    return SweepOpened(sweep="0190", schema=1, version="0", pid=1, at=at)


@pytest.mark.parametrize(
    ("at", "seconds"), [(160, 60), (100 + MAX_UNWATCHED_S, MAX_UNWATCHED_S), (10**9, MAX_UNWATCHED_S), (50, 0)]
)
def test_a_clock_that_was_set_between_two_processes_uses_up_an_hour_at_most(at: float, seconds: float) -> None:
    """The devbox was up for 10 s before, nobody watched it for so long by the next one's clock, and it lives on."""
    events = [*stage("start", 0), *stage("boot", 90), *stage("prepare", 100), opened(at)]
    assert fold(events).devbox_seconds(now=at + 5) == 10 + seconds + 5
    assert fold([*events, *stage("release", at + 7)]).devbox_seconds(now=10**12) == 10 + seconds + 7


def test_a_clock_that_is_set_while_a_process_lives_moves_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    before = now()
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert before <= now() < before + 60


def test_a_devbox_that_was_given_back_later_counts_until_then() -> None:
    """Its trial had another attempt meanwhile."""
    events = [*stage("start", 0), *stage("boot", 100), *stage("start", 200, attempt=2), *stage("release", 700)]
    assert fold(events).devbox_seconds(now=5000) == 600


def test_a_devbox_that_never_ran_and_a_clock_that_goes_back_cost_nothing() -> None:
    assert fold([*stage("start", 0), *stage("release", 500)]).devbox_seconds(now=5000) == 0
    assert fold([*stage("start", 0), *stage("boot", 100), *stage("release", 50)]).devbox_seconds(now=5000) == 0


def test_failed_trials_are_counted() -> None:
    ledger = fold([failed("s/a/1"), failed("s/a/2")])
    assert used_up(ledger, max_failures=3) is None
    assert used_up(ledger, max_failures=2) == "--max-failures 2 is reached; raise it to continue"


def test_the_deadline_is_a_moment_of_the_wall_clock() -> None:
    at = moment("07:00", NOON)
    assert used_up(Ledger(), now=at - 1, at=at, deadline="07:00") is None
    words = used_up(Ledger(), now=at, at=at, deadline="07:00")
    assert words == "the deadline (07:00) has passed; give a later one to continue"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("07:00", NOON + timedelta(hours=19)),
        ("7:00", NOON + timedelta(hours=19)),
        ("12:00", NOON + timedelta(days=1)),
        ("12:01", NOON + timedelta(minutes=1)),
        ("23:59:00", NOON + timedelta(hours=11, minutes=59)),
        ("8h", NOON + timedelta(hours=8)),
        ("90m", NOON + timedelta(minutes=90)),
        ("45s", NOON + timedelta(seconds=45)),
        ("2026-11-24T07:00", NOON + timedelta(hours=19)),
        ("2026-11-24 07:00", NOON + timedelta(hours=19)),
        ("2026-11-24", NOON + timedelta(hours=12)),
    ],
)
def test_a_deadline_is_the_next_such_time_or_from_now_or_itself(text: str, expected: datetime) -> None:
    assert moment(text, NOON) == expected.timestamp()


def test_a_deadline_with_a_zone_is_that_moment() -> None:
    assert moment("2026-11-24T07:00+00:00", NOON) == 1795503600.0


@pytest.mark.parametrize("text", ["5", "45", " 0.5 ", "20261124"])
def test_a_number_alone_is_no_deadline_for_nobody_means_seconds(text: str) -> None:
    number = text.strip()
    with pytest.raises(ValueError, match=rf"^{number} has no unit\. Write {number}h, {number}m, {number}s, or a time"):
        moment(text, NOON)


@pytest.mark.parametrize("text", ["2026-11-23T12:00", "2026-11-23 11:59", "2020-01-01", "1990-01-01T00:00+00:00"])
def test_a_moment_that_is_over_is_no_deadline(text: str) -> None:
    with pytest.raises(ValueError, match=r"is in the past\. Give a later time"):
        moment(text, NOON)


@pytest.mark.parametrize("text", ["25:00", "soon", "", "07:60", "2026-13-01", "8 hours", "0h"])
def test_an_invalid_deadline_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="Write 07:00, 8h or 2026-11-24T07:00"):
        moment(text, NOON)


def limited(sweep: Sweep, *, deadline: float | None = None) -> Sweep:
    """A sweep whose budgets are asked, by the clock of its journal."""
    budgets = Budgets(
        config=sweep.ctx.config, ledger=sweep.ledger, deadline=deadline, now=anyio.current_time, wall=anyio.current_time
    )
    sweep.stopping = Stopping(budgets.used_up)
    return sweep


def conduct(sweep: Sweep) -> Sweep:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, sweep.stopping)
            left = [key for key in sweep.plan if sweep.ledger.has_run(key)]
            await run_all(sweep.ctx, sweep.scheduler(left), sweep.stopping)
            tasks.cancel_scope.cancel()

    run_virtually(main)
    return sweep


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [({"max_devbox_hours": 0.2}, 9, 12), ({"max_failures": 4}, 4, 6)],
)
def test_a_budget_stops_new_trials_and_lets_those_in_flight_finish(
    make_sweep: MakeSweep, settings: dict[str, Any], least: int, most: int
) -> None:
    script = Script(exit_status=3) if "max_failures" in settings else Script()
    more = {"on_agent_failure": "fail"} if "max_failures" in settings else {}
    sweep = conduct(limited(make_sweep(scenarios=100, devboxes=3, script=script, **settings, **more)))
    assert least <= len(sweep.results) <= most
    assert sweep.endpoint.alive == 0
    assert not sweep.events("attempt.ended") or "max_failures" in settings
    assert sweep.stopping.reason is not None
    assert sweep.stopping.is_by_signal is False


def test_a_deadline_is_noticed_while_nothing_begins_or_ends(make_sweep: MakeSweep) -> None:
    sweep = limited(make_sweep(scenarios=10, devboxes=2, script=Script(solve=1000)), deadline=300.0)
    noticed: list[float] = []
    drain = sweep.stopping.drain

    def note(*words: Any, **facts: Any) -> None:
        noticed.append(anyio.current_time())
        drain(*words, **facts)

    sweep.stopping.drain = note  # type: ignore[method-assign]
    conduct(sweep)
    assert noticed[0] == pytest.approx(300, abs=LOOK_EVERY_S + 0.1)
    assert len(sweep.results) == 2


def test_a_resume_with_the_same_budget_does_nothing_and_with_more_continues(make_sweep: MakeSweep) -> None:
    first = conduct(limited(make_sweep(scenarios=20, devboxes=2, max_devbox_hours=0.1)))
    done = len(first.results)
    assert 0 < done < 20
    same = limited(
        make_sweep(scenarios=20, devboxes=2, max_devbox_hours=0.1, endpoint=first.endpoint, ledger=first.ledger)
    )
    runs = len(first.endpoint.runs)
    assert conduct(same).results == []
    assert len(first.endpoint.runs) == runs
    assert same.stopping.reason is not None
    more = limited(
        make_sweep(scenarios=20, devboxes=2, max_devbox_hours=9, endpoint=first.endpoint, ledger=first.ledger)
    )
    assert conduct(more).ledger.outcomes == {Outcome.SCORED: 20}


def test_agents_that_an_earlier_process_left_at_work_are_waited_for_though_a_budget_is_used_up(
    make_sweep: MakeSweep,
) -> None:
    first = make_sweep(scenarios=6, devboxes=2)

    async def die() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.conduct)
            await anyio.sleep(40)
            first.endpoint.is_gone = True
            first.sink.append_nowait = lambda *_: None  # type: ignore[method-assign]
            tasks.cancel_scope.cancel()

    run_virtually(die)
    first.endpoint.is_gone = False
    second = make_sweep(scenarios=6, devboxes=2, endpoint=first.endpoint, ledger=first.ledger)
    conduct(limited(second, deadline=0.0))
    assert len(second.results) == 2
    assert len(second.endpoint.runs) == 2
    assert second.endpoint.alive == 0
