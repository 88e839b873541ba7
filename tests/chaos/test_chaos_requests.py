"""Faults of requests, as the published client meets them."""

from functools import partial
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
from runloop_api_client import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
)

from orchestrator.testing.chaos.requests import HEADER
from tests.waiting import poll

if TYPE_CHECKING:
    from tests.chaos.conftest import Rehearse

pytestmark = pytest.mark.anyio


def rule(fault: str, **more: object) -> str:
    return "\n".join(["[[rules]]", f"fault = {fault!r}", *(f"{key} = {value!r}" for key, value in more.items())]) + "\n"


def asking(fault: str) -> dict[str, str]:
    return {HEADER: fault}


@pytest.mark.parametrize(
    ("written", "kind", "retry_after"),
    [
        (rule("429"), RateLimitError, None),
        (rule("429", retry_after=1.5), RateLimitError, "1.5"),
        (rule("503", retry_after=2), InternalServerError, "2"),
        (rule("500"), InternalServerError, None),
    ],
)
async def test_a_refusal_has_no_effect(
    rehearse: "Rehearse", written: str, kind: type[APIStatusError], retry_after: str | None
) -> None:
    """With Retry-After if the rule has it, and without if not."""
    async with rehearse(written + "times = 1\nroute = 'POST *'\n") as met:
        with pytest.raises(kind) as refused:
            await met.client.devboxes.create()
        assert refused.value.response.headers.get("retry-after") == retry_after
        assert (await met.client.devboxes.list()).total_count == 0
        await met.client.devboxes.create()


async def test_a_request_that_hangs_outlives_its_clients_patience(rehearse: "Rehearse") -> None:
    """It has no effect, and is over when the client goes, or after its own time."""
    async with rehearse(rule("hang", route="POST /v1/devboxes")) as met:
        with pytest.raises(APITimeoutError):
            await met.client.devboxes.create(timeout=0.3)
        with pytest.raises(APIConnectionError):
            await met.client.benchmarks.list(extra_headers=asking("hang=0.1"))
        assert (await met.client.devboxes.list()).total_count == 0
        headers = {"authorization": f"Bearer {met.address.token}"}
        async with httpx.AsyncClient(base_url=met.address.url, headers=headers, trust_env=False) as http:
            ask = partial(http.post, "/v1/sweep/stop")
            await poll(ask, lambda answer: answer.status_code == 200, "it does not stop")


async def test_an_answer_that_is_late_comes_and_its_effect_was_in_time(rehearse: "Rehearse") -> None:
    async with rehearse(rule("late", seconds=1.0, route="POST /v1/devboxes", times=2)) as met:
        began = anyio.current_time()
        devbox = await met.client.devboxes.create()
        assert anyio.current_time() - began >= 1.0
        with pytest.raises(APITimeoutError):
            await met.client.devboxes.create(timeout=0.5)
        assert (await met.client.devboxes.list()).total_count == 2
        assert (await met.settled(devbox.id)).status == "running"


@pytest.mark.parametrize("fault", ["drop", "drop-mid-body"])
async def test_a_connection_that_drops_hides_an_effect(rehearse: "Rehearse", fault: str) -> None:
    """And repeating the call with its key finds it."""
    async with rehearse(rule(fault, route="POST /v1/scenarios/start_run", times=1)) as met:
        scenario = await met.scenario()
        with anyio.fail_after(10), pytest.raises((APIConnectionError, httpx.TransportError)):
            await met.client.scenarios.start_run(scenario_id=scenario, idempotency_key="k")
        assert (await met.client.scenarios.runs.list()).total_count == 1
        again = await met.client.scenarios.start_run(scenario_id=scenario, idempotency_key="k")
        assert [run.id for run in (await met.client.scenarios.runs.list()).runs] == [again.id]


async def test_a_stream_that_drops_can_be_followed_further(rehearse: "Rehearse") -> None:
    async with rehearse(rule("drop-mid-body", route="GET *stream_stdout_updates", times=1)) as met:
        devbox = await met.devbox()
        done = await met.client.devboxes.execute(devbox, command="seq 1000")
        follow = partial(met.client.devboxes.executions.stream_stdout_updates, done.execution_id, devbox_id=devbox)
        stream = await follow()
        with pytest.raises((APIConnectionError, httpx.TransportError)):
            [chunk async for chunk in stream]
        text = "".join([chunk.output async for chunk in await follow()])
        assert text.split() == [str(number) for number in range(1, 1001)]


async def test_an_execution_that_vanishes_stays_unknown(rehearse: "Rehearse") -> None:
    """The execution only: its devbox and the others in it do not."""
    async with rehearse(rule("vanish", times=1)) as met:
        devbox = await met.devbox()
        first = await met.client.devboxes.execute(devbox, command="echo 1")
        second = await met.client.devboxes.execute(devbox, command="echo 2")
        for _ in range(2):
            with pytest.raises(NotFoundError, match=first.execution_id):
                await met.client.devboxes.executions.retrieve(first.execution_id, devbox_id=devbox)
        found = await met.client.devboxes.executions.retrieve(second.execution_id, devbox_id=devbox)
        assert found.stdout == "2\n"
        assert (await met.client.devboxes.retrieve(devbox)).status == "running"


@pytest.mark.parametrize(("fault", "read"), [("list-repeats", [5, 4, 4, 3, 2, 1]), ("list-skips", [5, 4, 2, 1])])
async def test_a_list_changes_while_it_is_read(rehearse: "Rehearse", fault: str, read: list[int]) -> None:
    """An item comes twice, or is missing; read again, the list is whole."""
    async with rehearse(rule(fault, route="GET /v1/benchmarks", times=1)) as met:
        for number in range(1, 6):
            await met.client.benchmarks.create(name=str(number))
        names = [int(each.name) async for each in met.client.benchmarks.list(limit=2)]
        assert names == read
        names = [int(each.name) async for each in met.client.benchmarks.list(limit=2)]
        assert names == [5, 4, 3, 2, 1]


async def test_a_request_may_ask_for_a_fault(rehearse: "Rehearse") -> None:
    """Of a service whose chaos file is empty."""
    async with rehearse("") as met:
        with pytest.raises(RateLimitError) as refused:
            await met.client.benchmarks.list(extra_headers=asking("429=3"))
        assert refused.value.response.headers["retry-after"] == "3"
        with pytest.raises(InternalServerError):
            await met.client.benchmarks.list(extra_headers=asking("503"))
        with pytest.raises(APIConnectionError):
            await met.client.benchmarks.list(extra_headers=asking("drop"))
        began = anyio.current_time()
        await met.client.benchmarks.list(extra_headers=asking("late=0.3"))
        assert anyio.current_time() - began >= 0.3
        for wrong in ("bogus", "drop=3", "late=x", "late=-1", "boot-fails", ""):
            with pytest.raises(BadRequestError, match=HEADER):
                await met.client.benchmarks.list(extra_headers=asking(wrong))


async def test_without_chaos_nobody_is_listened_to(rehearse: "Rehearse") -> None:
    async with rehearse() as met:
        await met.client.benchmarks.list(extra_headers=asking("503"))


async def test_shutdowns_and_our_own_routes_are_spared(rehearse: "Rehearse") -> None:
    """Our own routes, whatever is asked; the shutdown of a devbox, by the rules."""
    async with rehearse(rule("503", route="*") + rule("drop")) as met:
        headers = {"authorization": f"Bearer {met.address.token}"}
        with pytest.raises(InternalServerError):
            await met.client.devboxes.create()
        with pytest.raises(NotFoundError):
            await met.client.devboxes.shutdown("dbx_none")
        with pytest.raises(RateLimitError):
            await met.client.devboxes.shutdown("dbx_none", extra_headers=asking("429"))
        async with httpx.AsyncClient(
            base_url=met.address.url, headers=headers | asking("503"), trust_env=False
        ) as http:
            assert (await http.get("/v1/sweep")).status_code == 200
            assert (await http.post("/v1/sweep/stop")).status_code == 200


async def test_a_stranger_gets_no_chaos(rehearse: "Rehearse") -> None:
    async with rehearse(rule("503")) as met, httpx.AsyncClient(base_url=met.address.url, trust_env=False) as http:
        assert (await http.get("/v1/benchmarks", headers=asking("drop"))).status_code == 401


async def test_the_same_seed_and_requests_give_the_same_faults(rehearse: "Rehearse") -> None:
    """On another service, whatever else it is asked in between."""

    async def answers(seed: int, *between: str) -> list[int]:
        found = []
        written = f"seed = {seed}\n" + rule("503", probability=0.5)
        async with rehearse(written, state=f"state-{seed}-{len(between)}") as met:
            headers = {"authorization": f"Bearer {met.address.token}"}
            async with httpx.AsyncClient(base_url=met.address.url, headers=headers, trust_env=False) as http:
                for _ in range(30):
                    found.append((await http.get("/v1/benchmarks")).status_code)
                    for path in between:
                        await http.get(path)
        return found

    first = await answers(1)
    assert set(first) == {200, 503}
    assert await answers(1, "/v1/devboxes") == first
    assert await answers(2) != first
