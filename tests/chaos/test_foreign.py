"""The service as an endpoint that is not ours."""

from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import BaseModel
from runloop_api_client import BadRequestError
from runloop_api_client.types import BenchmarkRunView, DevboxView, ScenarioRunView

from orchestrator.core.protocol import Isolation

if TYPE_CHECKING:
    from tests.chaos.conftest import Rehearsal, Rehearse

pytestmark = pytest.mark.anyio


async def test_a_repeated_request_has_its_effect_again(rehearse: "Rehearse") -> None:
    async with rehearse(is_foreign=True) as met:
        scenario = await met.scenario()
        start = partial(met.client.scenarios.start_run, scenario_id=scenario, idempotency_key="k")
        first, second = await start(), await start()
        assert first.id != second.id
        devboxes = (await met.client.devboxes.list()).devboxes
        assert {devbox.id for devbox in devboxes} == {first.devbox_id, second.devbox_id}
        await met.settled(first.devbox_id)
        for _ in range(2):
            await met.client.devboxes.execute_async(first.devbox_id, command="echo x >>count", idempotency_key="e")
        done = await met.client.devboxes.execute(
            first.devbox_id, command="until [ $(wc -l <count) = 2 ]; do sleep 0.02; done"
        )
        assert done.exit_status == 0


async def test_a_command_id_is_published_and_still_names_one_execution(rehearse: "Rehearse") -> None:
    async with rehearse(is_foreign=True) as met:
        devbox = await met.devbox()
        execute = partial(met.client.devboxes.execute, devbox, command="echo x >>count", command_id="c1")
        assert (await execute()).execution_id == (await execute()).execution_id


async def test_our_own_routes_are_unknown(rehearse: "Rehearse") -> None:
    async with rehearse(is_foreign=True) as met:
        headers = {"authorization": f"Bearer {met.address.token}"}
        async with httpx.AsyncClient(base_url=met.address.url, headers=headers, trust_env=False) as http:
            for path in ("/v1/sweep", "/v1/sweep/proof?nonce=n"):
                assert (await http.get(path)).status_code == 404
            for path in ("/v1/sweep/heartbeat", "/v1/sweep/stop", "/v1/sweep/goodbye"):
                assert (await http.post(path)).status_code == 404


async def test_views_have_what_is_published_and_no_more(rehearse: "Rehearse", sandboxes: None) -> None:
    """On providers whose folders are at /; on others a devbox must say where its folders are."""
    async with rehearse(is_foreign=True, isolation=Isolation.LOCAL) as met:
        await look_at_every_view(met)
        assert unpublished(met) == set()


async def test_devboxes_without_folders_of_their_own_say_where_they_are(rehearse: "Rehearse") -> None:
    async with rehearse(is_foreign=True) as met:
        await look_at_every_view(met)
        assert unpublished(met) == {"home", "working_directory"}


async def look_at_every_view(met: "Rehearsal") -> None:
    """Of a benchmark run, of a scenario run that is scored and of one that failed, of their devboxes; in lists too."""
    scenario = await met.scenario()
    benchmark = await met.client.benchmarks.create(name="b", scenario_ids=[scenario])
    benchmark_run = await met.client.benchmarks.start_run(benchmark_id=benchmark.id)
    scored = await met.run(scenario, benchmark_run_id=benchmark_run.id)
    await met.score(scored)
    await met.client.scenarios.runs.complete(scored.id)
    failed = await met.run(scenario)
    await met.client.devboxes.shutdown(failed.devbox_id)
    assert (await met.client.scenarios.runs.retrieve(failed.id)).state == "failed"
    broken = await met.client.devboxes.create(launch_parameters={"launch_commands": ["exit 3"]})
    assert (await met.settled(broken.id)).status == "failure"
    assert (await met.client.benchmark_runs.retrieve(benchmark_run.id)).state == "completed"
    await met.client.benchmark_runs.list()
    await met.client.scenarios.runs.list()
    await met.client.devboxes.list()


def unpublished(met: "Rehearsal") -> set[str]:
    """The keys in all views so far that the client's types do not have; every view must be right for its type."""
    models: dict[str, type[BaseModel]] = {"dbx": DevboxView, "scr": ScenarioRunView, "bmr": BenchmarkRunView}
    found: set[str] = set()
    for reply in met.replies:
        body = reply.json() if reply.headers["content-type"] == "application/json" else {}
        for view in [body, *body.get("runs", ()), *body.get("devboxes", ())]:
            if model := models.get(str(view.get("id"))[:3]):
                found |= extras(model.model_validate(view))
    return found


def extras(value: Any) -> set[str]:
    if isinstance(value, BaseModel):
        fields = [getattr(value, name) for name in type(value).model_fields]
        return set(value.model_extra or {}).union(*(extras(field) for field in fields))
    return set().union(*(extras(item) for item in value)) if isinstance(value, list) else set()


async def test_a_run_is_scored_once(rehearse: "Rehearse") -> None:
    async with rehearse(is_foreign=True) as met:
        run = await met.run(await met.scenario("until [ -f go ]; do sleep 0.02; done; echo score=1.0"))
        await met.client.scenarios.runs.score(run.id)
        with pytest.raises(BadRequestError, match="is scoring"):
            await met.client.scenarios.runs.score(run.id)
        await met.client.devboxes.write_file_contents(run.devbox_id, file_path="go", contents="")
        await met.scored(run)
        for state in ("scored", "completed"):
            with pytest.raises(BadRequestError, match=f"is {state}"):
                await met.client.scenarios.runs.score(run.id)
            await met.client.scenarios.runs.complete(run.id)


async def test_a_function_in_error_counts_nothing_and_the_run_is_scored(rehearse: "Rehearse") -> None:
    async with rehearse(is_foreign=True) as met:
        scored = await met.score(await met.run(await met.scenario("exit 3", "echo score=1.0")))
        result = scored.scoring_contract_result
        assert result is not None
        assert (scored.state, result.score) == ("scored", 0.5)
        assert [each.state for each in result.scoring_function_results] == ["error", "complete"]


async def test_the_metadata_of_a_run_is_on_the_run_only(rehearse: "Rehearse") -> None:
    async with rehearse(is_foreign=True) as met:
        run = await met.run(metadata={"sweep": "s1"})
        assert run.metadata == {"sweep": "s1"}
        assert (await met.client.devboxes.retrieve(run.devbox_id)).metadata == {}


async def test_a_foreign_endpoint_can_misbehave_too(rehearse: "Rehearse") -> None:
    """The scorer's error of a chaos file is then a result as well."""
    async with rehearse('[[rules]]\nfault = "scorer-error"\n', is_foreign=True) as met:
        scored = await met.score(await met.run())
        assert scored.state == "scored"
        assert scored.scoring_contract_result is not None
        assert scored.scoring_contract_result.scoring_function_results[0].state == "error"
