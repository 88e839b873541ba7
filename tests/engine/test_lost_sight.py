"""Something that every trial needs is away, changed or silent for a while: that is no trial's fault."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import anyio
import pytest

from orchestrator.common.awake import LATE_S, AwakeLoop
from orchestrator.core.errors import Missing
from orchestrator.core.ledger import Ledger
from orchestrator.core.records import Outcome, ScenarioSummary
from orchestrator.testing.fakes import MemoryEndpoint, Script

from .conftest import MakeSweep
from .test_resume import die_after


def test_an_endpoint_that_knows_nothing_of_the_sweep_any_more_gets_a_new_benchmark_run(make_sweep: MakeSweep) -> None:
    """Its state was removed, or the sweep's folder was copied to another machine."""
    first = make_sweep(scenarios=6, devboxes=2)
    die_after(first, 40)
    done = set(first.ledger.finished)
    assert 0 < len(done) < 6
    assert any(map(first.ledger.has_run, first.ledger.trials)), "some were under way"
    elsewhere = MemoryEndpoint(first.endpoint.summaries_)
    second = make_sweep(scenarios=6, devboxes=2, endpoint=elsewhere, ledger=first.ledger).run()
    assert second.ledger.outcomes == {Outcome.SCORED: 6}
    assert {str(key) for key in done}.isdisjoint(run.metadata["trial"] for run in elsewhere.runs.values())
    assert [state.round for state in second.ledger.benchmark_runs.values()] == [2]
    assert elsewhere.alive == 0


def test_a_benchmark_run_that_goes_missing_is_followed_by_another(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=6, devboxes=2)

    async def disturb() -> None:
        await anyio.sleep(100)
        sweep.endpoint.benchmark_runs.clear()

    sweep.run_beside(disturb)
    assert sweep.ledger.outcomes == {Outcome.SCORED: 6}
    assert len(sweep.events("benchmark_run.started")) == 2


def test_a_scenario_that_is_missing_for_a_while_fails_no_trial(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=4, script=Script(faults={"scenario": [Missing("no such folder")] * 40})).run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 4}
    assert sweep.events("attempt.ended") == []


def test_a_scenario_that_is_missing_for_good_stops_the_sweep_and_fails_no_trial(make_sweep: MakeSweep) -> None:
    script = Script(faults={"scenario": [Missing("no such folder")] * 10_000})
    sweep = make_sweep(scenarios=4, script=script, unreachable=600.0).run()
    assert sweep.stopping.reason is not None
    assert "has been missing for 10 minutes: no such folder. Put it back" in sweep.stopping.reason
    assert not sweep.ledger.outcomes


def test_a_scenario_that_is_missing_does_not_hold_up_the_others(make_sweep: MakeSweep) -> None:
    class OneGone(MemoryEndpoint):
        async def scenario(self, scenario_id: str) -> Any:
            if scenario_id == "scn_0":
                raise Missing("no scn_0")
            return await super().scenario(scenario_id)

    summaries = [ScenarioSummary(id=f"scn_{n}", name=f"scenario-{n}") for n in range(9)]
    sweep = make_sweep(scenarios=9, devboxes=2, endpoint=OneGone(summaries), unreachable=600.0).run()
    assert sweep.ledger.outcomes == {Outcome.SCORED: 8}
    assert max(event.at for event in sweep.events("trial.finished")) < 9 * 100
    assert "no scn_0" in str(sweep.stopping.reason)


def test_a_scenario_that_is_edited_stops_the_sweep_and_no_table_mixes_two_scorings(make_sweep: MakeSweep) -> None:
    script = Script(digests={f"scn_{n}": "as it was" for n in range(3)})
    sweep = make_sweep(scenarios=3, devboxes=1, script=script)
    for key, summary in sweep.ctx.scenarios.items():
        sweep.ctx.scenarios[key] = replace(summary, digest="as it was")  # type: ignore[index]  # a dict, in fact

    async def disturb() -> None:
        await anyio.sleep(100)
        script.digests["scn_1"] = script.digests["scn_2"] = "edited"

    sweep.run_beside(disturb)
    assert 1 <= len(sweep.ledger.finished) < 3
    assert not sweep.ledger.outcomes[Outcome.FAILED]
    assert "scn_" in str(sweep.stopping.reason)
    assert "was changed while the sweep ran" in str(sweep.stopping.reason)
    assert sweep.endpoint.alive == 0


@pytest.mark.parametrize("is_silent", [True, False])
def test_time_in_which_the_endpoint_is_silent_is_no_stages(make_sweep: MakeSweep, *, is_silent: bool) -> None:
    """The devbox takes 1,000 s to boot, of which the endpoint is away for 400; 900 s are allowed."""
    sweep = make_sweep(scenarios=1, attempts=1, script=Script(boot=1000.0))

    async def disturb() -> None:
        await anyio.sleep(100)
        sweep.endpoint.is_gone = is_silent
        await anyio.sleep(400)
        sweep.endpoint.is_gone = False

    sweep.run_beside(disturb)
    assert sweep.ledger.outcomes == {Outcome.SCORED if is_silent else Outcome.FAILED: 1}


def test_an_endpoint_that_stays_silent_stops_the_sweep_and_fails_nobody(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=3, script=Script(boot=100_000.0), unreachable=1800.0, timeouts={"boot": 900.0})

    async def disturb() -> None:
        await anyio.sleep(100)
        sweep.endpoint.is_gone = True

    sweep.run_beside(disturb)
    assert "the endpoint has not answered for 30 minutes" in str(sweep.stopping.reason)
    assert not sweep.ledger.outcomes
    assert not any(event.counted for event in sweep.events("attempt.ended"))


def test_time_in_which_the_endpoint_is_silent_is_no_commands(make_sweep: MakeSweep) -> None:
    """The patch takes 10 s, and may take a minute; in it the endpoint is away for two."""

    class Away(MemoryEndpoint):
        async def wait_completed(self, devbox_id: str, execution_id: str) -> Any:
            if execution_id.endswith("/patch.sh"):
                self.is_gone = True
                await anyio.sleep(120)
                self.is_gone = False
                await anyio.sleep(10)
            return await super().wait_completed(devbox_id, execution_id)

    summaries = [ScenarioSummary(id="scn_0", name="scenario-0")]
    (result,) = make_sweep(scenarios=1, endpoint=Away(summaries)).run().results
    assert (result["outcome"], result["flags"]) == ("scored", [])


def test_what_an_endpoint_fell_silent_under_is_taken_up_by_the_next_process(make_sweep: MakeSweep) -> None:
    """The agent works for an hour, and the endpoint is away for the second half: nobody pays for it twice."""
    first = make_sweep(scenarios=1, script=Script(solve=3600.0), unreachable=600.0)

    async def disturb() -> None:
        await anyio.sleep(1800)
        first.endpoint.is_gone = True

    first.run_beside(disturb)
    assert first.stopping.reason is not None
    first.endpoint.is_gone = False
    second = make_sweep(scenarios=1, endpoint=first.endpoint, ledger=first.ledger).run()
    assert second.ledger.outcomes == {Outcome.SCORED: 1}
    assert len(second.endpoint.runs) == 1
    assert [result["attempts"] for result in second.results] == [[{"attempt": 1, "failure": None}]]


def test_an_agent_that_ended_while_nobody_looked_is_not_called_timed_out(make_sweep: MakeSweep) -> None:
    """Its end is on record in the devbox, and we come late: before anything is ended, the record is asked."""

    class Late(MemoryEndpoint):
        async def wait_completed(self, devbox_id: str, execution_id: str) -> Any:
            ended = await super().wait_completed(devbox_id, execution_id)
            if self.calls["wait_completed"] == 1:
                await anyio.sleep(10_000)
            return ended

    summaries = [ScenarioSummary(id="scn_0", name="scenario-0", agent_timeout=100.0)]
    sweep = make_sweep(
        scenarios=1, endpoint=Late(summaries), ledger=Ledger(), agent_timeout=100.0, timeouts={"start": 20_000.0}
    ).run()
    (result,) = sweep.results
    assert (result["outcome"], result["flags"]) == ("scored", [])


@pytest.mark.parametrize(("unheard", "outcome"), [(4, Outcome.SCORED), (100, Outcome.FAILED)])
def test_a_service_that_could_ask_no_scorer_is_told_to_try_again_later(
    make_sweep: MakeSweep, unheard: int, outcome: Outcome
) -> None:
    """The agent is not run again, and no scoring is used up by it; there is an end to it."""
    sweep = make_sweep(scenarios=1, scorings=2, script=Script(unheard_scorings=unheard)).run()
    assert sweep.ledger.outcomes == {outcome: 1}
    assert sweep.endpoint.calls["execute"] == 1
    assert sweep.endpoint.alive == 0


SLEEPER = """
import anyio
from orchestrator.common.awake import AwakeLoop

async def main():
    with anyio.move_on_after(LIMIT) as scope:
        print("begun", flush=True)
        for _ in range(20):
            await anyio.sleep(0.1)
    print("late" if scope.cancelled_caught else "in time", flush=True)

anyio.run(main, backend_options={"loop_factory": LOOP})
"""


@pytest.mark.slow
@pytest.mark.parametrize(("loop", "said"), [("AwakeLoop", "in time"), ("None", "late")])
def test_a_process_that_was_suspended_is_not_late(loop: str, said: str) -> None:
    script = SLEEPER.replace("LIMIT", str(LATE_S + 2)).replace("LOOP", loop)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        child.send_signal(signal.SIGSTOP)
        time.sleep(LATE_S + 4)
        child.send_signal(signal.SIGCONT)
        assert child.stdout.readline() == f"{said}\n"


@pytest.mark.slow
def test_a_wait_that_begins_after_the_process_was_suspended_in_the_same_turn_is_as_long_as_it_says() -> None:
    async def main() -> None:
        with anyio.fail_after(LATE_S + 0.5):
            time.sleep(LATE_S + 1)  # noqa: ASYNC251  # as a suspension in the middle of a turn
            await anyio.sleep(0.1)

    anyio.run(main, backend_options={"loop_factory": AwakeLoop})
