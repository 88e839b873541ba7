"""A sweep that is to stop: what still happens, for how long, and that nothing makes it wait for ever."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator.commands.run_sweep import complete
from orchestrator.core.errors import AgentSetupFailed, DevboxFailed, Throttled, Unavailable
from orchestrator.core.events import Event
from orchestrator.core.ledger import fold
from orchestrator.core.records import Outcome
from orchestrator.engine.agent_log import telling_line
from orchestrator.engine.lifecycle import CANCEL_GRACE_S
from orchestrator.engine.worker import run_all
from orchestrator.testing.clock import run_virtually
from orchestrator.testing.fakes import MemorySink, Script

from .conftest import MakeSweep, Sweep

FOREVER = 1e7
NIGHT = 12 * 3600.0


def conduct(sweep: Sweep, *acts: tuple[float, Callable[[], Any]]) -> float:
    """Run the sweep and do this at these times; returns when it was over."""

    async def main() -> float:
        async with anyio.create_task_group() as tasks:

            async def act() -> None:
                for at, do in acts:
                    await anyio.sleep_until(at)
                    do()

            tasks.start_soon(act)
            await sweep.conduct()
            tasks.cancel_scope.cancel()
        return anyio.current_time()

    return run_virtually(main)


def test_draining_is_over_when_its_time_is_and_what_it_ended_has_not_failed(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=9, devboxes=3, script=Script(solve=1000))
    over = conduct(sweep, (30, lambda: sweep.stopping.drain("SIGTERM", within=300)))
    assert 330 <= over < 330 + CANCEL_GRACE_S
    assert sweep.results == []
    assert sweep.endpoint.alive == 0
    assert {event.failure["class"] for event in sweep.events("attempt.ended")} == {"Interrupted"}
    assert not any(event.counted for event in sweep.events("attempt.ended"))


def test_draining_ends_before_its_time_when_those_in_flight_do(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=9, devboxes=3)
    over = conduct(sweep, (30, lambda: sweep.stopping.drain("SIGTERM", within=300)))
    assert over < 100
    assert sweep.ledger.outcomes == {Outcome.SCORED: 3}


def test_the_shortest_time_for_draining_holds(make_sweep: MakeSweep) -> None:
    """A budget has no bound of its own; a signal after it may have one."""
    sweep = make_sweep(scenarios=3, script=Script(solve=10_000))
    stopping = sweep.stopping
    over = conduct(
        sweep,
        (30, lambda: stopping.drain("the budget")),
        (60, lambda: stopping.drain("SIGTERM", within=100)),
        (70, lambda: stopping.drain("SIGTERM", within=5000)),
    )
    assert 160 <= over < 160 + CANCEL_GRACE_S
    assert stopping.reason == "the budget"


def test_a_stop_before_anything_is_in_flight_ends_all_at_once(make_sweep: MakeSweep) -> None:
    stopping = make_sweep().stopping

    async def main() -> float:
        with anyio.CancelScope() as opening:
            stopping.open(opening)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep, FOREVER)
                await anyio.sleep(3)
                stopping.drain("SIGINT", within=300)
        return anyio.current_time()

    assert run_virtually(main) < 4


def test_a_stop_that_came_early_is_heeded_by_what_starts_later(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    sweep_over = conduct(sweep, (0, lambda: sweep.stopping.cancel("SIGINT")))
    assert sweep_over < 1
    assert sweep.endpoint.runs == {}


CALLS = (
    "scenario",
    "start_benchmark_run",
    "start_run",
    "wait_running",
    "execute",
    "wait_completed",
    "write_file",
    "devbox_log",
    "score",
    "wait_scored",
    "devbox",
    "run",
    "list_runs",
    "list_devboxes",
    "kill",
    "complete",
    "cancel",
)


@pytest.mark.parametrize("call", CALLS)
def test_a_sweep_finishes_though_a_call_hangs_for_ever(make_sweep: MakeSweep, call: str) -> None:
    """After the last attempt "gave up" is an outcome; what only makes things nicer or tidier fails nothing."""
    script = Script(slow={call: FOREVER}, solve=FOREVER if call == "kill" else 60.0)
    if call == "cancel":
        script.faults = {"wait_running": [DevboxFailed("it never ran")] * 100}
    sweep = make_sweep(scenarios=2, attempts=2, agent_timeout=600, script=script)
    over = conduct(sweep)
    assert over < NIGHT
    assert len(sweep.results) == 2
    fails_nothing = {"wait_completed", "devbox_log", "devbox", "run", "list_runs", "list_devboxes", "complete"}
    for result in sweep.results:
        if call in fails_nothing:
            assert result["outcome"] == "scored"
        else:
            assert result["outcome"] == "failed"
            assert result["failure"]["class"] in {"StageTimeout", "DevboxFailed", "AgentTimedOut"}, result["failure"]
            assert len(result["attempts"]) == 2


@pytest.mark.parametrize("call", CALLS)
def test_a_resumed_sweep_finishes_though_a_call_hangs_for_ever(make_sweep: MakeSweep, call: str) -> None:
    first = make_sweep(scenarios=4, devboxes=2, agent_timeout=600)

    async def die() -> None:
        """Without a word: what is in flight stays as it is."""
        with anyio.CancelScope() as life:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first.conduct)
                await anyio.sleep(100)
                first.endpoint.is_gone = True
                life.cancel()

    run_virtually(die)
    first.endpoint.is_gone = False
    first.endpoint.script.slow = {call: FOREVER}
    second = make_sweep(scenarios=4, attempts=2, endpoint=first.endpoint, ledger=first.ledger, agent_timeout=600)
    assert conduct(second) < NIGHT
    assert second.stopping.fault is None, second.stopping.fault
    assert sum(second.ledger.outcomes.values()) == 4


@pytest.mark.parametrize("call", ["start_run", "wait_running", "wait_completed", "wait_scored", "complete", "cancel"])
@pytest.mark.parametrize("at", [1, 5, 40, 75])
def test_canceling_ends_within_bounds_whatever_hangs(make_sweep: MakeSweep, call: str, at: float) -> None:
    sweep = make_sweep(scenarios=6, devboxes=3, script=Script(slow={call: FOREVER}))
    over = conduct(sweep, (at, lambda: sweep.stopping.cancel("SIGINT")))
    assert over < at + CANCEL_GRACE_S + 1


@pytest.mark.parametrize("at", [5, 40, 75])
def test_canceling_ends_within_bounds_though_the_endpoint_is_gone(make_sweep: MakeSweep, at: float) -> None:
    sweep = make_sweep(scenarios=6, devboxes=3)

    def lose() -> None:
        sweep.endpoint.is_gone = True
        sweep.stopping.cancel("SIGINT")

    assert conduct(sweep, (at, lose)) < at + CANCEL_GRACE_S + 1


class StuckSink(MemorySink):
    """A journal on a disk that has no room any more: what is appended never becomes durable."""

    is_stuck = False

    async def append(self, *batch: Event) -> None:
        await super().append(*batch)
        if self.is_stuck:
            await anyio.sleep(FOREVER)

    def append_nowait(self, *batch: Event) -> None:
        if not self.is_stuck:
            super().append_nowait(*batch)


def stick(sweep: Sweep) -> StuckSink:
    sink = StuckSink(sweep.ledger)
    object.__setattr__(sweep.ctx, "sink", sink)
    return sink


@pytest.mark.parametrize("at", [5, 40, 71])
def test_canceling_waits_for_no_journal_and_gives_every_devbox_back(make_sweep: MakeSweep, at: float) -> None:
    sweep = make_sweep(scenarios=6, devboxes=3)
    sink = stick(sweep)

    def stop() -> None:
        sink.is_stuck = True
        sweep.stopping.cancel("SIGINT")

    assert conduct(sweep, (at, stop)) < at + CANCEL_GRACE_S + 1
    assert sweep.endpoint.alive == 0


def test_a_devbox_whose_score_is_not_durable_is_left_alone_and_does_not_hold_up_the_end(make_sweep: MakeSweep) -> None:
    """Its score is on the endpoint only: the next resume takes it from there."""
    sweep = make_sweep(scenarios=1)
    sink = stick(sweep)

    def stick_at_the_score() -> None:
        sink.is_stuck = True

    over = conduct(sweep, (72, stick_at_the_score), (200, lambda: sweep.stopping.cancel("SIGINT")))
    assert over < 200 + CANCEL_GRACE_S + 1
    [run] = sweep.endpoint.runs.values()
    assert run.state == "scored"
    assert sweep.endpoint.alive == 1


def test_devboxes_that_never_boot_stop_the_sweep_with_one_message(make_sweep: MakeSweep) -> None:
    script = Script(failing_boots=10_000)
    sweep = make_sweep(scenarios=500, devboxes=4, script=script).run()
    assert sweep.stopping.reason is not None
    assert re.match(r"1\d devboxes in a row did not come up: devbox dbx_", sweep.stopping.reason)
    assert sweep.stopping.fault is None
    assert len(sweep.endpoint.runs) < 15
    assert len(sweep.results) <= 3, "those that were tried three times before"
    assert sweep.endpoint.alive == 0


def test_a_sweep_that_the_breaker_stopped_continues_when_the_fault_is_fixed(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=20, devboxes=4, script=Script(failing_boots=10_000)).run()
    failed = len(first.results)
    first.endpoint.script.failing_boots = 0
    second = make_sweep(scenarios=20, devboxes=4, endpoint=first.endpoint, ledger=first.ledger).run()
    assert second.ledger.outcomes == {Outcome.SCORED: 20 - failed, Outcome.FAILED: failed} or failed == 0


def test_an_agent_that_cannot_be_installed_stops_the_sweep_with_one_message(make_sweep: MakeSweep) -> None:
    class Broken:
        where, needs_reference, digest, name = "devbox", False, "", "broken"
        hosts, install, time_limit = (), None, None
        endpoint_secrets: Mapping[str, str] = {}

        async def prepare(self, task: object, workspace: object) -> None:
            raise AgentSetupFailed("no such package")

        async def aclose(self) -> None:
            """Nothing is held."""

    sweep = make_sweep(scenarios=100, devboxes=4, same_failures=5)
    [arm] = sweep.ctx.arms.values()
    object.__setattr__(arm, "agent", Broken())
    sweep.run()
    assert sweep.stopping.reason is not None
    assert re.search(r"could not be installed [5-9] times in a row: no such package", sweep.stopping.reason)
    assert len(sweep.endpoint.runs) <= 9
    assert sweep.endpoint.alive == 0


MISTYPED = Script(exit_status=127, score=0.0, output="\n  sh: claude-cod: not \x1b[31mfound\nmore\n")
ALWAYS = (
    r"the agent of command crashed in each of its 1[0-3] trials so far, with exit status 127: "
    r"sh: claude-cod: not \\x1b\[31mfound\. Fix it, and start a new sweep, or run these again with --retry agent_"
)


def test_an_agent_that_crashes_in_every_trial_stops_the_sweep_with_its_first_words(make_sweep: MakeSweep) -> None:
    """A mistyped command would look like an honest 0.000 in the morning."""
    sweep = make_sweep(scenarios=100, devboxes=4, script=MISTYPED).run()
    assert re.match(ALWAYS, sweep.stopping.reason or "")
    assert 10 <= len(sweep.results) <= 13
    assert sweep.endpoint.alive == 0
    assert {result["exit_status"] for result in sweep.results} == {127}


@pytest.mark.parametrize("script", [Script(exit_status=1, score=0.5), Script(exit_status=0, score=0.0)])
def test_an_agent_that_crashes_or_scores_nothing_but_not_both_stops_nothing(
    make_sweep: MakeSweep, script: Script
) -> None:
    sweep = make_sweep(scenarios=15, script=script).run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 15}


def test_crashes_before_a_resume_count(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=100, devboxes=2, script=MISTYPED)
    conduct(first, (200, lambda: first.stopping.drain("SIGTERM")))
    assert 4 <= len(first.results) <= 8
    second = make_sweep(scenarios=100, devboxes=2, endpoint=first.endpoint, ledger=fold(first.sink.events)).run()
    assert re.match(ALWAYS, second.stopping.reason or "")
    assert 10 <= len(first.results) + len(second.results) <= 11


def test_a_fixed_agent_continues_after_a_resume(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=30, devboxes=4, script=MISTYPED).run()
    first.endpoint.script = Script(score=0.0)
    second = make_sweep(scenarios=30, devboxes=4, endpoint=first.endpoint, ledger=fold(first.sink.events)).run()
    assert second.stopping.reason is None
    assert second.ledger.outcomes == {Outcome.SCORED: 30}


def test_the_other_arms_crash_counts_for_the_other_arm_only(make_sweep: MakeSweep) -> None:
    arms = [{"agent": "command:a", "name": "a"}, {"agent": "command:b", "name": "b"}]
    sweep = make_sweep(scenarios=9, arms=arms, script=MISTYPED).run()
    assert sweep.stopping.reason is None


@pytest.mark.parametrize(
    ("printed", "line"),
    [
        (b"", ""),
        (b"\n \t\n", ""),
        (b"\r\n  first  of\tall \nsecond", "first of all"),
        (b"Traceback (most recent call last):\n  File \"x\"\nKeyError: 'API_KEY'\n\n", "KeyError: 'API_KEY'"),
        (b"\xff\x1b[2J", "\N{REPLACEMENT CHARACTER}\\x1b[2J"),
        (b"x" * 10_000_000, "x" * 199 + "…"),
    ],
)
def test_the_line_of_a_log_that_tells_most_is_fit_to_be_printed(tmp_path: Path, printed: bytes, line: str) -> None:
    (tmp_path / "agent.log").write_bytes(printed)
    assert telling_line(tmp_path / "agent.log") == line


def test_a_log_that_is_not_there_tells_nothing(tmp_path: Path) -> None:
    assert telling_line(tmp_path / "agent.log") == ""


@pytest.mark.parametrize("fault", [Throttled("quota exhausted"), Unavailable("no route to host")])
def test_an_endpoint_that_grants_no_run_for_long_stops_the_sweep_and_fails_no_trial(
    make_sweep: MakeSweep, fault: Throttled | Unavailable
) -> None:
    script = Script(faults={"start_run": [fault] * 100_000})
    sweep = make_sweep(scenarios=50, devboxes=4, unreachable="10m", script=script)
    over = conduct(sweep)
    assert sweep.stopping.reason is not None
    assert str(fault) in sweep.stopping.reason
    assert sweep.results == []
    assert 600 <= over < 1200


def test_a_quota_that_our_own_devboxes_use_up_stops_nothing(make_sweep: MakeSweep) -> None:
    """While one of ours is alive its end makes room."""
    sweep = make_sweep(scenarios=4, devboxes=2, unreachable="10m", script=Script(solve=3000))
    endpoint, start_run = sweep.endpoint, sweep.endpoint.start_run

    async def start_if_there_is_room(*words: Any, **facts: Any) -> Any:
        if endpoint.alive:
            raise Throttled("quota: one devbox at a time")
        return await start_run(*words, **facts)

    endpoint.start_run = start_if_there_is_room  # type: ignore[method-assign]
    conduct(sweep)
    assert sweep.stopping.reason is None
    assert sweep.ledger.outcomes == {Outcome.SCORED: 4}


def test_a_budget_is_asked_at_each_admission(make_sweep: MakeSweep) -> None:
    """Three trials are done, the budget is for three: not one more is begun."""
    sweep = make_sweep(scenarios=20, devboxes=1)
    sweep.stopping._ask = lambda: "used up" if len(sweep.results) >= 3 else None
    run_virtually(lambda: run_all(sweep.ctx, sweep.scheduler(), sweep.stopping))
    assert len(sweep.results) == 3
    assert sweep.stopping.reason == "used up"


@pytest.mark.parametrize("fault", ["hangs", "fails"])
def test_closing_the_benchmark_runs_holds_up_no_end(make_sweep: MakeSweep, fault: str) -> None:
    script = Script(slow={"complete_benchmark_run": FOREVER if fault == "hangs" else 0.01})
    script.faults = {"complete_benchmark_run": [Unavailable("gone")] * 9} if fault == "fails" else {}
    sweep = make_sweep(scenarios=1, script=script).run()
    run_virtually(lambda: complete(sweep.ctx, sweep.plan, sweep.stopping))
    assert sweep.events("sweep.ended")[0].reason == "finished"
