"""The endpoint's runs of a sweep, compared with those that its ledger knows."""

from dataclasses import replace

import pytest

from orchestrator.core.errors import SweepCanceled, Unavailable
from orchestrator.core.ledger import fold
from orchestrator.core.records import BenchmarkRun, Devbox, Outcome, ScenarioRun
from orchestrator.testing.fakes import MemoryEndpoint, Script

from .conftest import MakeSweep
from .test_resume import die_after


def add_run(endpoint: MemoryEndpoint, *, sweep: str, benchmark_run: str | None = "bmr_1") -> str:
    """A scenario run with a devbox that somebody started."""
    number = len(endpoint.runs) + 1
    metadata = {"sweep": sweep, "trial": "scn_0/command/1", "attempt": "7"}
    endpoint.devboxes[f"dbx_{number}"] = Devbox(id=f"dbx_{number}", status="running", metadata=metadata)
    endpoint.runs[f"scr_{number}"] = ScenarioRun(
        id=f"scr_{number}",
        scenario_id="scn_0",
        devbox_id=f"dbx_{number}",
        state="running",
        benchmark_run_id=benchmark_run,
        metadata=metadata,
    )
    return f"scr_{number}"


def test_runs_of_the_sweep_that_its_journal_does_not_know_are_ended_and_reported(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=3, devboxes=1)
    die_after(first, 12)
    stray = add_run(first.endpoint, sweep="0190")
    second = make_sweep(scenarios=3, endpoint=first.endpoint, ledger=fold(first.sink.events)).run()
    assert first.endpoint.runs[stray].state == "canceled"
    assert [event.run for event in second.events("stray.found")] == [stray]
    assert second.ledger.outcomes == {Outcome.SCORED: 3}


def test_a_devbox_that_lives_without_its_run_is_shut_down(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=1)
    die_after(first, 6)
    first.endpoint.devboxes["dbx_9"] = Devbox(id="dbx_9", status="running", metadata={"sweep": "0190"})
    make_sweep(scenarios=1, endpoint=first.endpoint, ledger=fold(first.sink.events)).run()
    assert first.endpoint.devboxes["dbx_9"].status == "shutdown"


def test_runs_of_other_sweeps_are_left_alone(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=1)
    die_after(first, 6)
    other = add_run(first.endpoint, sweep="another")
    make_sweep(scenarios=1, endpoint=first.endpoint, ledger=fold(first.sink.events)).run()
    assert first.endpoint.runs[other].state == "running"
    assert first.endpoint.alive == 1


def test_a_start_whose_answer_was_lost_leaves_nothing_behind_at_the_end(make_sweep: MakeSweep) -> None:
    """The answer is lost, the endpoint forgets keys, and the trial is tried again: its first run is a stray."""
    sweep = make_sweep(scenarios=1, script=Script(is_forgetful=True))
    start_run = sweep.endpoint.start_run

    async def start_and_lose_the_answer(*words: object, **named: object) -> ScenarioRun:
        run = await start_run(*words, **named)  # type: ignore[arg-type]
        if len(sweep.endpoint.runs) == 1:
            raise Unavailable("the connection broke")
        return run

    sweep.endpoint.start_run = start_and_lose_the_answer  # type: ignore[method-assign]
    sweep.run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 1}
    assert len(sweep.endpoint.runs) == 1, "it was found by its metadata and used"
    assert sweep.endpoint.alive == 0


def test_reconciling_costs_a_few_lists_and_not_a_call_for_each_trial(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=20, devboxes=20)
    die_after(first, 120)
    assert len(first.ledger.unreleased()) == 20
    before = first.endpoint.calls.copy()
    make_sweep(scenarios=20, devboxes=20, endpoint=first.endpoint, ledger=fold(first.sink.events)).run()
    calls = first.endpoint.calls - before
    assert calls["list_runs"] + calls["list_devboxes"] <= 4
    assert calls["run"] + calls["devbox"] <= 2, "only what a list does not show is asked for by itself"


def test_lists_that_cannot_be_read_hold_nothing_up(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=2)
    die_after(first, 12)
    first.endpoint.script.faults["list_runs"] = [Unavailable("no lists here")] * 9
    second = make_sweep(scenarios=2, endpoint=first.endpoint, ledger=fold(first.sink.events)).run()
    assert second.ledger.outcomes == {Outcome.SCORED: 2}
    assert second.endpoint.alive == 0


def test_a_benchmark_run_that_somebody_canceled_stops_the_sweep(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=3, devboxes=1)
    die_after(first, 30)
    first.endpoint.benchmark_runs["bmr_1"] = replace(first.endpoint.benchmark_runs["bmr_1"], state="canceled")
    second = make_sweep(scenarios=3, endpoint=first.endpoint, ledger=fold(first.sink.events)).run()
    assert isinstance(second.stopping.fault, SweepCanceled)
    assert "bmr_1" in str(second.stopping.fault)
    assert second.ledger.outcomes[Outcome.FAILED] == 0, "a stop marks no trial as failed"


def test_a_benchmark_run_that_is_over_while_trials_are_pending_is_followed_by_another(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=3, devboxes=1)
    die_after(first, 30)
    first.endpoint.benchmark_runs["bmr_1"] = replace(first.endpoint.benchmark_runs["bmr_1"], state="completed")
    second = make_sweep(scenarios=3, endpoint=first.endpoint, ledger=fold(first.sink.events)).run()
    assert second.ledger.outcomes == {Outcome.SCORED: 3}
    assert [event.run for event in second.events("benchmark_run.started")] == ["bmr_2"]


@pytest.mark.parametrize("is_forgetful", [False, True])
def test_a_benchmark_run_whose_id_was_never_received_is_adopted(make_sweep: MakeSweep, *, is_forgetful: bool) -> None:
    first = make_sweep(scenarios=1, script=Script(is_forgetful=is_forgetful))
    kinds = [event.kind for event in make_sweep(scenarios=1).run().sink.events]
    intended = kinds.index("benchmark_run.intended") + 1
    die_after(first, intended + 1)
    assert len(first.endpoint.benchmark_runs) == 1
    make_sweep(scenarios=1, endpoint=first.endpoint, ledger=fold(first.sink.events[:intended])).run()
    assert len(first.endpoint.benchmark_runs) == 1


def test_a_benchmark_run_whose_answer_was_lost_is_not_started_twice(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1, script=Script(is_forgetful=True))
    start = sweep.endpoint.start_benchmark_run

    async def start_and_lose_the_answer(*words: object, **named: object) -> BenchmarkRun:
        run = await start(*words, **named)  # type: ignore[arg-type]
        if len(sweep.endpoint.benchmark_runs) == 1:
            raise Unavailable("the connection broke")
        return run

    sweep.endpoint.start_benchmark_run = start_and_lose_the_answer  # type: ignore[method-assign]
    sweep.run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 1}
    assert len(sweep.endpoint.benchmark_runs) == 1


def test_a_second_order_to_score_that_is_refused_takes_the_first_ones_result(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=1)
    score = sweep.endpoint.score

    async def score_twice(run_id: str, *, key: str) -> ScenarioRun:
        """Call twice, as after a broken connection."""
        await score(run_id, key=key)
        return await score(run_id, key=key)

    sweep.endpoint.score = score_twice  # type: ignore[method-assign]
    sweep.run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 1}
    assert len(sweep.endpoint.runs) == 1


@pytest.mark.parametrize("kind", ["stage.entered", "run.started"])
def test_a_result_is_taken_though_the_journal_was_put_back_to_before_the_run(make_sweep: MakeSweep, kind: str) -> None:
    first = make_sweep(scenarios=1).run()
    kinds = [event.kind for event in first.sink.events]
    kept = first.sink.events[: kinds.index(kind) + 1]
    second = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=fold(kept)).run()
    assert [result["score"] for result in second.results] == [1.0]
    assert len(first.endpoint.runs) == 1


def test_a_run_that_was_started_before_and_is_over_uses_up_no_attempt(make_sweep: MakeSweep) -> None:
    first = make_sweep(scenarios=1).run()
    kinds = [event.kind for event in first.sink.events]
    kept = first.sink.events[: kinds.index("stage.entered") + 1]
    first.endpoint.runs["scr_1"] = replace(first.endpoint.runs["scr_1"], state="canceled", score=None)
    second = make_sweep(scenarios=1, attempts=1, endpoint=first.endpoint, ledger=fold(kept)).run()
    assert second.ledger.outcomes == {Outcome.SCORED: 1}
