"""Faults of devboxes and scorings, as the published client meets them."""

from typing import TYPE_CHECKING

import anyio
import pytest
from runloop_api_client import BadRequestError

if TYPE_CHECKING:
    from tests.chaos.conftest import Rehearse

pytestmark = pytest.mark.anyio


async def test_a_slow_boot_comes_late(rehearse: "Rehearse") -> None:
    async with rehearse('[[rules]]\nfault = "slow-boot"\nseconds = 1.0\ntimes = 1\n') as met:
        began = anyio.current_time()
        await met.devbox()
        assert anyio.current_time() - began >= 1.0


async def test_a_slow_boot_can_be_given_up(rehearse: "Rehearse") -> None:
    async with rehearse('[[rules]]\nfault = "slow-boot"\nseconds = 3600\n') as met:
        devbox = await met.client.devboxes.create()
        with anyio.fail_after(10):
            assert (await met.client.devboxes.shutdown(devbox.id)).status == "shutdown"


async def test_a_boot_that_fails_fails_its_run(rehearse: "Rehearse") -> None:
    """The next one is sound."""
    async with rehearse('[[rules]]\nfault = "boot-fails"\ntimes = 1\n') as met:
        scenario = await met.scenario()
        run = await met.client.scenarios.start_run(scenario_id=scenario)
        assert (await met.settled(run.devbox_id)).status == "failure"
        assert (await met.client.scenarios.runs.retrieve(run.id)).state == "failed"
        await met.run(scenario)


async def test_a_devbox_dies_under_an_execution(rehearse: "Rehearse") -> None:
    """An execution that has ended by then ends nothing; the run has failed, and its execution has completed badly."""
    async with rehearse('[[rules]]\nfault = "dies-solving"\nseconds = 0.5\n') as met:
        run = await met.run()
        quick = await met.client.devboxes.execute(run.devbox_id, command="true")
        assert quick.exit_status == 0
        began = anyio.current_time()
        long = await met.client.devboxes.execute_async(run.devbox_id, command="sleep 600")
        assert (await met.settled(run.devbox_id, "failure", "shutdown")).status == "failure"
        assert 0.5 <= anyio.current_time() - began < 20
        ended = await met.client.devboxes.executions.retrieve(long.execution_id, devbox_id=run.devbox_id)
        assert (ended.status, ended.exit_status) == ("completed", 137)
        assert (await met.client.scenarios.runs.retrieve(run.id)).state == "failed"
        with pytest.raises(BadRequestError, match="is failure"):
            await met.client.devboxes.execute_async(run.devbox_id, command="true")


async def test_a_devbox_dies_under_its_scorer(rehearse: "Rehearse") -> None:
    async with rehearse('[[rules]]\nfault = "dies-scoring"\ntimes = 1\n') as met:
        run = await met.run()
        assert (await met.score(run)).state == "failed"
        assert (await met.client.devboxes.retrieve(run.devbox_id)).status == "failure"
        assert (await met.score(await met.run())).state == "scored"


async def test_scoring_fails_twice_and_then_works(rehearse: "Rehearse") -> None:
    """On each devbox that the rule strikes; the functions are in error, and nothing of the scorers has run."""
    async with rehearse('[[rules]]\nfault = "scorer-error"\nscorings = 2\ntimes = 2\n') as met:
        scenario = await met.scenario("echo x >>count; echo score=1.0", "echo score=0.5")
        for _ in range(2):
            run = await met.run(scenario)
            for _ in range(2):
                failed = await met.score(run)
                assert failed.state == "failed"
                assert failed.scoring_contract_result is not None
                functions = failed.scoring_contract_result.scoring_function_results
                assert [(each.state, each.score) for each in functions] == [("error", 0.0)] * 2
                assert "this is chaos" in functions[0].output
            scored = await met.score(run)
            assert scored.scoring_contract_result is not None
            assert (scored.state, scored.scoring_contract_result.score) == ("scored", 0.75)
            count = await met.client.devboxes.read_file_contents(run.devbox_id, file_path="count")
            assert count == "x\n"
        assert (await met.score(await met.run(scenario))).state == "scored"
