"""The engine on a virtual clock: what a sweep does with a night of any kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator.core.errors import Refused, Throttled, Unauthorized, Unavailable
from orchestrator.core.records import Outcome, ScenarioRun, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.engine.scheduler import ArmQueue, Scheduler
from orchestrator.engine.worker import run_all
from orchestrator.engine.workspace import BACKSTOP_S
from orchestrator.testing.clock import run_virtually
from orchestrator.testing.fakes import MemoryEndpoint, Script

from .conftest import MakeSweep


def test_every_trial_ends_with_exactly_one_result(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=20, trials=3, devboxes=4).run()
    assert len(sweep.results) == 60
    assert len({(r["scenario"], r["arm"], r["trial"]) for r in sweep.results}) == 60
    assert sweep.ledger.outcomes == {Outcome.SCORED: 60}


def test_no_more_devboxes_than_asked_are_alive_at_once(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=30, devboxes=4).run()
    assert sweep.endpoint.most_alive == 4
    assert sweep.endpoint.alive == 0


def test_agents_have_a_limit_of_their_own_and_the_next_devboxes_boot_ahead(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=8, devboxes=8, agents=2, script=Script(boot=10, solve=100)).run()
    assert sweep.endpoint.most_alive == 8
    waited = sorted(result["stages"]["solve"]["waited"] for result in sweep.results)
    assert waited[0] == pytest.approx(0, abs=1)
    assert waited[-1] > 250


def test_each_arm_and_trial_number_has_its_own_benchmark_run(make_sweep: MakeSweep) -> None:
    arms = [{"agent": "nop"}, {"agent": "oracle"}]
    sweep = make_sweep(arms=arms, trials=2).run()
    runs = {run.name: run for run in sweep.endpoint.benchmark_runs.values()}
    assert sorted(runs) == ["0190/nop/1", "0190/nop/2", "0190/oracle/1", "0190/oracle/2"]
    assert {run.state for run in runs.values()} == {"completed"}
    for result in sweep.results:
        assert result["ids"]["benchmark_run"] == runs[f"0190/{result['arm']}/{result['trial']}"].id


def test_the_result_is_durable_before_the_devbox_is_released(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1).run()
    kinds = [(event.kind, getattr(event, "stage", "")) for event in sweep.sink.events]
    assert kinds.index(("trial.finished", "")) < kinds.index(("stage.entered", "release"))


def test_an_intent_is_written_before_each_stage(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1).run()
    stages = [event.stage for event in sweep.events("stage.entered")]
    assert stages == ["start", "boot", "prepare", "solve", "gather", "score", "release"]


def test_the_worlds_failures_are_tried_again_and_the_evidence_is_kept(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, script=Script(failing_boots=1, dying_devboxes=1)).run()
    [result] = sweep.results
    assert result["outcome"] == "scored"
    failures = [attempt["failure"] and attempt["failure"]["class"] for attempt in result["attempts"]]
    assert failures == ["DevboxFailed", "DevboxLost", None]
    assert sweep.endpoint.alive == 0


def test_a_trial_is_given_up_after_its_attempts_and_is_not_a_zero(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, attempts=3, script=Script(failing_boots=3)).run()
    [failed] = sweep.results
    assert (failed["outcome"], failed["score"], failed["failure"]["class"]) == ("failed", None, "DevboxFailed")
    assert len(failed["attempts"]) == 3


def test_a_scorers_fault_is_scored_again_without_running_the_agent_again(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, script=Script(broken_scorings=2)).run()
    [result] = sweep.results
    assert (result["outcome"], result["score"]) == ("scored", 1.0)
    assert len(sweep.endpoint.runs) == 1
    assert sweep.endpoint.calls["score"] == 3


def test_scorers_that_stay_broken_fail_the_trial(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, script=Script(broken_scorings=9)).run()
    [result] = sweep.results
    assert (result["outcome"], result["failure"]["class"]) == ("failed", "ScoringFault")
    assert result["scorers"] == [{"name": "tests", "score": 0.0, "state": "error"}]


def test_an_agent_that_crashes_is_scored_by_default_and_flagged(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, script=Script(exit_status=3, score=0.25)).run()
    [result] = sweep.results
    assert (result["outcome"], result["score"], result["flags"]) == ("scored", 0.25, ["agent_crashed"])


def test_an_agent_that_crashes_is_a_failure_where_the_user_says_so(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, script=Script(exit_status=3), on_agent_failure="fail").run()
    [result] = sweep.results
    assert (result["outcome"], result["failure"]["class"], len(sweep.endpoint.runs)) == ("failed", "AgentCrashed", 1)


def test_an_agent_that_never_ends_is_killed_and_flagged(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, agent_timeout=100, script=Script(solve=1e9)).run()
    [result] = sweep.results
    assert (result["outcome"], result["flags"]) == ("scored", ["agent_timed_out"])
    assert sweep.endpoint.calls["kill"] == 1


@pytest.mark.parametrize(("of_scenario", "of_user", "limit"), [(None, None, 50), (80, None, 80), (80, 90, 90)])
def test_an_agents_own_time_limit_counts_where_nobody_says_another(
    make_sweep: MakeSweep, tmp_path: Path, of_scenario: float | None, of_user: float | None, limit: float
) -> None:
    (tmp_path / "mine.toml").write_text("run = 'work'\ntime_limit = 50\n")
    sweep = make_sweep(
        scenarios=1,
        agent=f"{tmp_path}/mine.toml",
        agent_timeout=of_scenario,
        timeouts={"solve": of_user},
        script=Script(solve=1e9),
    ).run()
    [result] = sweep.results
    assert result["flags"] == ["agent_timed_out"]
    assert result["stages"]["solve"]["seconds"] == pytest.approx(limit + BACKSTOP_S, abs=2)


def test_a_stage_that_hangs_ends_by_its_deadline(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, attempts=1, timeouts={"boot": 60}, script=Script(boot=1e9)).run()
    [result] = sweep.results
    assert result["failure"]["class"] == "StageTimeout"
    assert result["stages"]["boot"]["seconds"] == pytest.approx(60, abs=1)


def test_a_refusal_is_not_tried_again(make_sweep: MakeSweep) -> None:
    script = Script(faults={"start_run": [Refused("no such scenario")]})
    sweep = make_sweep(scenarios=1, script=script).run()
    assert [result["failure"]["class"] for result in sweep.results] == ["Refused"]
    assert sweep.endpoint.calls["start_run"] == 1


def test_a_bad_key_stops_the_sweep_with_one_message_instead_of_failing_every_trial(make_sweep: MakeSweep) -> None:
    script = Script(faults={"start_run": [Unauthorized("bad key")] * 100})
    sweep = make_sweep(scenarios=50, devboxes=2, script=script).run()
    assert isinstance(sweep.stopping.fault, Unauthorized)
    assert sweep.results == []
    assert sweep.endpoint.calls["start_run"] <= 2


def test_a_throttled_endpoint_gets_fewer_devboxes_and_then_more_again(make_sweep: MakeSweep) -> None:
    script = Script(faults={"start_run": [Throttled("slow down", retry_after=5)]})
    sweep = make_sweep(scenarios=200, devboxes=8, script=script)
    seen = []

    async def conduct() -> None:
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                while True:
                    seen.append(sweep.ctx.limits.devboxes)
                    await anyio.sleep(5)

            tasks.start_soon(watch)
            await sweep.conduct()
            tasks.cancel_scope.cancel()

    run_virtually(conduct)
    assert min(seen) == 4
    assert seen[-1] == 8
    assert len(sweep.results) == 200


def test_retry_after_is_honoured_and_holds_no_worker(make_sweep: MakeSweep) -> None:
    """The worker is free, and nobody asks again before it is time."""
    script = Script(faults={"start_run": [Unavailable("later", retry_after=500)]})
    sweep = make_sweep(scenarios=3, devboxes=1, script=script)
    asked_at: list[float] = []
    start_run = sweep.endpoint.start_run

    async def note_when(*words: Any, **named: Any) -> ScenarioRun:
        asked_at.append(anyio.current_time())
        return await start_run(*words, **named)

    sweep.endpoint.start_run = note_when  # type: ignore[method-assign]
    sweep.run()
    assert asked_at[1] - asked_at[0] >= 500
    assert len(sweep.results) == 3


def test_draining_finishes_what_is_in_flight_and_starts_nothing_new(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=20, devboxes=4)

    async def conduct() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sweep.conduct)
            await anyio.sleep(30)
            sweep.stopping.drain()

    run_virtually(conduct)
    assert len(sweep.results) == 4
    assert sweep.endpoint.alive == 0


def test_canceling_releases_every_devbox_and_fails_no_trial(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=20, devboxes=4)

    async def conduct() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sweep.conduct)
            await anyio.sleep(30)
            sweep.stopping.cancel()

    run_virtually(conduct)
    assert sweep.results == []
    assert sweep.endpoint.alive == 0
    assert {event.failure["class"] for event in sweep.events("attempt.ended")} == {"Interrupted"}
    assert not any(event.counted for event in sweep.events("attempt.ended"))


def test_canceling_while_a_devbox_is_given_back_gives_it_back_all_the_same(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, script=Script(slow={"complete": 30}))

    async def conduct() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sweep.conduct)
            await anyio.sleep(90)
            assert sweep.ledger.stages[Stage.RELEASE] == 1
            sweep.endpoint.script.slow.clear()
            sweep.stopping.cancel()

    run_virtually(conduct)
    assert len(sweep.results) == 1
    assert sweep.endpoint.alive == 0
    assert sweep.ledger.unreleased() == []


def test_running_again_does_only_pending_trials(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=6, devboxes=2)

    async def conduct() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.conduct)
            await anyio.sleep(100)
            first.stopping.cancel()

    run_virtually(conduct)
    done = len(first.results)
    assert 0 < done < 6
    second = make_sweep(scenarios=6, devboxes=2, endpoint=first.endpoint, ledger=first.ledger).run()
    assert len(second.results) == 6 - done
    assert second.ledger.outcomes == {Outcome.SCORED: 6}


def test_memory_does_not_grow_with_the_benchmark(make_sweep: MakeSweep) -> None:
    """A pending trial is not even a key until the queue has room for it."""
    sweep = make_sweep(scenarios=5, trials=100_000, devboxes=2)
    asked = 0
    endpoint: MemoryEndpoint = sweep.endpoint

    def pending() -> Iterator[TrialKey]:
        nonlocal asked
        for key in sweep.plan.pending(sweep.ledger):
            asked += 1
            yield key

    async def conduct() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                run_all, sweep.ctx, Scheduler({"command": ArmQueue(pending=pending())}, sweep.stopping), sweep.stopping
            )
            await anyio.sleep(60)
            sweep.stopping.cancel()

    run_virtually(conduct)
    assert asked <= len(endpoint.runs) + 2
