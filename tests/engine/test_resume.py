"""A sweep that died at any event, and the process that goes on with it.

The dead process is one whose journal stops and whom nobody hears: what it had done on the endpoint stays done.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any

import anyio
import pytest
from msgspec import structs

from orchestrator.core.errors import Missing, Unavailable
from orchestrator.core.events import AttemptEnded, Event, StageEntered, StageFinished
from orchestrator.core.ledger import Attempt, fold
from orchestrator.core.records import Devbox, Outcome, ScenarioRun
from orchestrator.core.stages import Stage
from orchestrator.engine.resume import next_stage
from orchestrator.testing.fakes import MemoryEndpoint, Script

from .conftest import MakeSweep, Sweep


def die_after(sweep: Sweep, count: int) -> None:
    """Run the sweep until its journal has `count` events; whatever its cleanup does then has no effect any more."""
    append = sweep.sink.append_nowait

    def append_or_die(*batch: Event) -> None:
        for event in batch:
            if len(sweep.sink.events) < count:
                append(event)
        if len(sweep.sink.events) >= count:
            sweep.endpoint.is_gone = True
            sweep.stopping.cancel()

    sweep.sink.append_nowait = append_or_die  # type: ignore[method-assign]
    sweep.run()
    sweep.endpoint.is_gone = False


def executions_of_agents(endpoint: MemoryEndpoint) -> list[str]:
    return [command for command in endpoint.executions.values() if command.startswith("bash ")]


def devboxes_of_agents(endpoint: MemoryEndpoint) -> set[str]:
    """In each of them the wrapper runs the agent once, however often it is executed."""
    return {devbox for (devbox, path) in endpoint.files if path.endswith("/agent/command")}


def total_events(make_sweep: MakeSweep) -> int:
    return len(make_sweep(scenarios=3, devboxes=2).run().sink.events)


@pytest.mark.parametrize("is_forgetful", [False, True])
def test_killed_at_any_event_every_trial_ends_with_one_result_and_no_agent_runs_twice(
    make_sweep: MakeSweep, *, is_forgetful: bool
) -> None:
    """On our service and on an endpoint that takes each repeated call for a new one."""
    for count in range(1, total_events(make_sweep) + 1):
        first = make_sweep(scenarios=3, devboxes=2, script=Script(is_forgetful=is_forgetful))
        die_after(first, count)
        ledger = fold(first.sink.events)
        second = make_sweep(scenarios=3, devboxes=2, endpoint=first.endpoint, ledger=ledger).run()
        assert ledger.outcomes == {Outcome.SCORED: 3}, count
        assert len(first.results) + len(second.results) == 3, count
        assert len(executions_of_agents(first.endpoint)) <= 3 + is_forgetful, count
        assert len(devboxes_of_agents(first.endpoint)) == 3, count
        assert first.endpoint.alive == 0, count
        assert {run.state for run in first.endpoint.runs.values()} <= {"completed", "canceled"}, count
        assert sum(run.state == "completed" for run in first.endpoint.runs.values()) == 3, count
        assert ledger.unreleased() == [], count


def seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def test_a_result_says_when_its_first_attempt_began_and_when_it_was_there(make_sweep: MakeSweep) -> None:
    """Through attempts that failed, and the death of the process."""
    script = Script(failing_boots=1)
    first = make_sweep(scenarios=1, script=script, timeouts={"boot": 50})
    die_after(first, 14)
    began = next(event.at for event in first.sink.events if isinstance(event, StageEntered))
    second = make_sweep(scenarios=1, script=script, endpoint=first.endpoint, ledger=fold(first.sink.events)).run()
    [result] = second.results
    [finished] = second.events("trial.finished")
    assert len(result["attempts"]) == 2
    assert seconds(result["started"]) == pytest.approx(began, abs=0.002)
    assert seconds(result["finished"]) == pytest.approx(finished.at, abs=0.002)
    assert result["started"].endswith("+00:00")


def test_an_agent_on_this_host_does_not_survive_us_and_its_trial_is_tried_again() -> None:
    attempt = Attempt(number=1, stage=Stage.SOLVE)
    assert next_stage(attempt, run("running"), devbox("running"), where="host") is None


def run(state: str, score: float | None = None) -> ScenarioRun:
    return ScenarioRun(id="scr_1", scenario_id="scn_1", devbox_id="dbx_1", state=state, score=score)


def devbox(status: str) -> Devbox:
    return Devbox(id="dbx_1", status=status)


@pytest.mark.parametrize(
    ("stage", "finished", "state", "status", "goes_on"),
    [
        (Stage.START, None, "running", "provisioning", Stage.BOOT),
        (Stage.BOOT, Stage.START, "running", "initializing", Stage.BOOT),
        (Stage.BOOT, Stage.START, "running", "running", Stage.BOOT),
        (Stage.BOOT, Stage.BOOT, "running", "running", Stage.PREPARE),
        (Stage.PREPARE, Stage.BOOT, "running", "running", None),
        (Stage.PREPARE, Stage.PREPARE, "running", "running", Stage.SOLVE),
        (Stage.SOLVE, Stage.PREPARE, "running", "running", Stage.SOLVE),
        (Stage.SOLVE, Stage.SOLVE, "running", "running", Stage.GATHER),
        (Stage.GATHER, Stage.SOLVE, "running", "running", Stage.GATHER),
        (Stage.GATHER, Stage.GATHER, "running", "running", Stage.SCORE),
        (Stage.SCORE, Stage.GATHER, "running", "running", Stage.SCORE),
        (Stage.SCORE, Stage.GATHER, "scoring", "running", Stage.SCORE),
        (Stage.SCORE, Stage.GATHER, "failed", "running", Stage.SCORE),
        (Stage.SCORE, Stage.GATHER, "failed", "shutdown", None),
        (Stage.SOLVE, Stage.PREPARE, "running", "failure", None),
        (Stage.BOOT, Stage.START, "timeout", "shutdown", None),
    ],
)
def test_an_interrupted_attempt_continues_at_the_right_stage(
    stage: Stage, finished: Stage | None, state: str, status: str, goes_on: Stage | None
) -> None:
    attempt = Attempt(number=1, stage=stage, finished=finished)
    assert next_stage(attempt, run(state), devbox(status), where="devbox") is goes_on


@pytest.mark.parametrize("status", ["running", "shutdown", "failure"])
def test_a_result_that_is_there_wins_over_a_dead_devbox(status: str) -> None:
    attempt = Attempt(number=1, stage=Stage.SCORE, finished=Stage.GATHER)
    assert next_stage(attempt, run("scored", 0.5), devbox(status), where="devbox") is Stage.SCORE


def test_facts_of_earlier_stages_are_in_the_result_after_a_resume(make_sweep: MakeSweep) -> None:
    """The agent's own words, the hosts that it reached, and the files that had been collected."""
    found = {"exit_reason": "max_turns", "network": {"reached": {"a.example:443": 2}, "refused": {}}}
    first = make_sweep(scenarios=1)
    die_after(first, [event.kind for event in make_sweep(scenarios=1).run().sink.events].index("trial.finished") - 2)
    *before, last = first.sink.events
    assert isinstance(last, StageFinished)
    assert last.stage is Stage.GATHER
    events = [*before, structs.replace(last, facts={**last.facts, **found})]
    (result,) = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=fold(events)).run().results
    assert {name: result[name] for name in found} == found
    assert {"agent_log", "devbox_log", "scorer_tests"} <= result["files"].keys()


@pytest.mark.parametrize("entered", [Stage.GATHER, Stage.SCORE])
def test_files_that_could_not_be_collected_are_reported_after_a_resume(make_sweep: MakeSweep, entered: Stage) -> None:
    """Files that were collected are in its result, and come no second time."""

    def failing() -> Sweep:
        return make_sweep(scenarios=1, script=Script(faults={"devbox_log": [Unavailable("not now")]}))

    first, events = failing(), failing().run().sink.events
    (last,) = [at for at, event in enumerate(events) if isinstance(event, StageEntered) and event.stage is entered]
    die_after(first, last + 2 if entered is Stage.GATHER else last + 1)
    second = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=fold(first.sink.events)).run()
    (result,) = second.results
    assert result["flags"] == ["gather_incomplete"]
    assert {"agent_log", "scorer_tests"} <= result["files"].keys()
    assert first.endpoint.calls["devbox_log"] == 1


def test_a_run_that_was_scored_before_anything_came_home_says_so(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=1).run()
    is_begun = [event.kind for event in first.sink.events].index("execution.started")
    before = fold(first.sink.events[:is_begun])
    first.endpoint.runs = {name: replace(run, state="scored") for name, run in first.endpoint.runs.items()}
    (result,) = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=before).run().results
    assert (result["score"], result["flags"]) == (1.0, ["gather_incomplete"])


def test_interruptions_use_up_no_attempt_but_have_a_limit_of_their_own(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, attempts=1)
    ledger, endpoint = sweep.ledger, sweep.endpoint
    results: list[Any] = []
    for _ in range(9):
        if results:
            break
        sweep = make_sweep(scenarios=1, attempts=1, endpoint=endpoint, ledger=ledger)
        die_after(sweep, 6)
        for identity, box in endpoint.devboxes.items():
            endpoint.devboxes[identity] = Devbox(id=box.id, status="failure")
        results = sweep.events("trial.finished")
    assert [result.result["failure"]["class"] for result in results] == ["Interrupted"]
    assert ledger.trials[next(iter(ledger.trials))].counted == 0


@pytest.mark.parametrize("refusals", [1, 2])
def test_a_release_that_failed_is_made_good_before_the_end_or_by_the_next_process(
    make_sweep: MakeSweep, refusals: int
) -> None:
    script = Script(
        failing_boots=1, faults={"cancel": [Unavailable("down")] * refusals, "shutdown": [Unavailable("down")]}
    )
    sweep = make_sweep(scenarios=1, script=script).run()
    assert len(sweep.ledger.unreleased()) == refusals - 1
    make_sweep(scenarios=1, endpoint=sweep.endpoint, ledger=sweep.ledger).run()
    assert sweep.ledger.unreleased() == []
    assert sweep.endpoint.calls["cancel"] == refusals + 1
    assert [run.state for run in sweep.endpoint.runs.values()] == ["failed", "completed"]


def test_a_trial_that_is_no_longer_asked_for_is_ended_and_released(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=3, devboxes=3)
    die_after(first, 12)
    second = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=first.ledger).run()
    assert second.endpoint.alive == 0
    assert second.ledger.outcomes == {Outcome.SCORED: 1}


def test_trials_that_hold_a_devbox_go_first(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=4, devboxes=2, script=Script(failing_boots=1))
    die_after(first, 16)
    held = {str(key) for key, _ in first.ledger.unreleased()}
    pending = [str(key) for key in first.plan.pending(first.ledger)]
    assert len(held) == 2
    assert set(pending[:2]) == held
    assert len(pending) == 4


def left_in(stage: Stage, make_sweep: MakeSweep) -> Sweep:
    """A sweep of one trial whose process ended in a stage."""
    whole = make_sweep(scenarios=1).run().sink.events
    count = next(n for n, event in enumerate(whole, 1) if isinstance(event, StageEntered) and event.stage is stage)
    first = make_sweep(scenarios=1)
    die_after(first, count)
    return first


def test_an_attempt_that_cannot_be_taken_up_for_now_is_taken_up_later_however_often(make_sweep: MakeSweep) -> None:
    """Its agent may still work: it is neither given up nor begun anew."""
    first = left_in(Stage.SOLVE, make_sweep)
    first.endpoint.script.faults["scenario"] = [Unavailable("its catalog is being read")] * 200
    second = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=first.ledger, unreachable=1e6).run()
    assert second.ledger.outcomes == {Outcome.SCORED: 1}
    assert len(second.endpoint.runs) == 1


@pytest.mark.parametrize("fault", [Unavailable("its catalog is being read"), Missing("no such folder")])
def test_an_attempt_that_cannot_be_taken_up_for_long_stops_the_sweep_and_stays_as_it_is(
    make_sweep: MakeSweep, fault: Unavailable | Missing
) -> None:
    first = left_in(Stage.SOLVE, make_sweep)
    first.endpoint.script.faults["scenario"] = [fault] * 10_000
    second = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=first.ledger, unreachable=600.0).run()
    assert second.stopping.reason is not None
    assert not second.ledger.outcomes
    first.endpoint.script.faults.clear()
    third = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=first.ledger).run()
    assert third.ledger.outcomes == {Outcome.SCORED: 1}
    assert len(third.endpoint.runs) == 1


def test_a_stop_before_an_attempt_is_taken_up_releases_its_devbox(make_sweep: MakeSweep) -> None:
    """The endpoint lists no runs and is slow to say what became of the run: only the journal knows it."""
    first = left_in(Stage.SOLVE, make_sweep)
    script = first.endpoint.script
    script.faults["list_runs"] = [Unavailable("down")] * 1000
    script.slow["run"] = 60.0
    second = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=first.ledger)

    async def stop() -> None:
        await anyio.sleep(30)
        script.slow.clear()
        second.stopping.cancel()

    second.run_beside(stop)
    assert second.endpoint.alive == 0


def test_processes_that_end_while_scorers_run_use_up_no_scoring(make_sweep: MakeSweep) -> None:
    first = left_in(Stage.SCORE, make_sweep)
    for _ in range(2):
        again = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=first.ledger)
        die_after(again, 1)
        assert [event.stage for event in again.events("stage.entered")] == [Stage.SCORE]
    first.endpoint.script.broken_scorings = 1
    last = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=first.ledger).run()
    assert last.ledger.outcomes == {Outcome.SCORED: 1}


def test_a_run_that_an_ended_attempt_started_without_knowing_its_id_is_ended_first(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=2, devboxes=1)
    whole = make_sweep(scenarios=1).run().sink.events
    count = next(number for number, event in enumerate(whole) if event.kind == "run.started")
    die_after(first, count + 1)
    ledger = fold(first.sink.events[:count])
    failure = {"class": "Interrupted", "message": "the sweep was stopped", "stage": "start"}
    ledger.apply(AttemptEnded(trial=str(next(iter(ledger.trials))), attempt=1, failure=failure, counted=False))
    second = make_sweep(scenarios=2, devboxes=1, endpoint=first.endpoint, ledger=ledger).run()
    assert second.events("stray.found")
    assert second.endpoint.most_alive == 1
    assert second.ledger.outcomes == {Outcome.SCORED: 2}
