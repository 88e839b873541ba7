"""Sizes that a client may send or ask for: more is its mistake, and costs the service nothing."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from orchestrator.core.protocol import Isolation
from orchestrator.service import serialization, store
from orchestrator.service.address import Address
from orchestrator.service.definitions import merged_list
from orchestrator.service.http import files
from orchestrator.service.server import Service

pytestmark = pytest.mark.anyio
Serving = Callable[..., AbstractAsyncContextManager[tuple[Address, httpx.AsyncClient]]]
#: Ways to write a number that no column and no clock can hold.
GIANTS = [str(2**63), str(2**64), str(2**70), "1" + "0" * 400, "1e30", "1e400", "-1e400", f'"{2**70}"', '"1e30"']


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    given, kept_back = "SERVICE_TEST_GIVEN", "SERVICE_TEST_KEPT_BACK"
    os.environ.update({given: "a value that was given out", kept_back: "a value that nobody gave out"})
    async with Service.open(
        state=tmp_path, benchmarks=[], isolation=Isolation.NONE, token="t", secret_names=[given]
    ) as service:
        transport = httpx.ASGITransport(app=service.app)
        headers = {"authorization": "Bearer t"}
        async with httpx.AsyncClient(transport=transport, base_url="http://s", headers=headers, timeout=60) as opened:
            yield opened
    del os.environ[given], os.environ[kept_back]


def refused(answer: httpx.Response, words: str) -> None:
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["message"]


SCENARIO: dict[str, Any] = {
    "name": "s",
    "input_context": {"problem_statement": "p"},
    "scoring_contract": {
        "scoring_function_parameters": [
            {"name": "it", "weight": 1, "scorer": {"type": "command_scorer", "command": "true"}}
        ]
    },
}


async def test_a_secret_of_the_services_environment_is_had_only_if_it_was_given_out(client: httpx.AsyncClient) -> None:
    scenario = (await client.post("/v1/scenarios", json=SCENARIO)).json()["id"]
    benchmark = (await client.post("/v1/benchmarks", json={"name": "b", "scenario_ids": [scenario]})).json()["id"]
    starts = (("scenarios", {"scenario_id": scenario}), ("benchmarks", {"benchmark_id": benchmark}))
    for name in ("SERVICE_TEST_KEPT_BACK", "HOME", "PATH", ""):
        for kind, body in starts:
            profile = {"runProfile": {"secrets": {"KEY": name}}}
            refused(await client.post(f"/v1/{kind}/start_run", json=body | profile), "keeps no secret named")
    for kind, body in starts:
        profile = {"runProfile": {"secrets": {"KEY": "SERVICE_TEST_GIVEN"}}}
        assert (await client.post(f"/v1/{kind}/start_run", json=body | profile)).status_code == 200
    listed = (await client.get("/v1/secrets")).json()["secrets"]
    assert [secret["name"] for secret in listed] == ["SERVICE_TEST_GIVEN"]


@pytest.mark.parametrize("number", GIANTS, ids=lambda text: text[:12])
@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/v1/scenarios", "scorer_timeout_sec"),
        ("/v1/devboxes", "launch_parameters.keep_alive_time_seconds"),
        ("/v1/devboxes", "launch_parameters.custom_gb_memory"),
        ("/v1/devboxes", "launch_parameters.user_parameters.uid"),
        ("/v1/devboxes/{devbox}/wait_for_status", "timeout_seconds"),
        ("/v1/devboxes/{devbox}/execute", "optimistic_timeout"),
    ],
)
async def test_a_giant_number_is_the_clients_mistake_or_means_for_long(
    client: httpx.AsyncClient, path: str, key: str, number: str
) -> None:
    made = (await client.post("/v1/devboxes/create_and_await_running", json={})).json()["id"]
    base = {"statuses": ["running"], "command": "true", "command_id": "c", **SCENARIO}
    text = number
    for part in reversed(key.split(".")):
        text = f'{{"{part}": {text}}}'
    body = orjson.dumps(base).decode()[:-1] + ", " + text[1:]
    answer = await client.post(path.format(devbox=made), content=body)
    assert answer.status_code in {200, 400}, answer.text
    if "timeout" not in key or key == "scorer_timeout_sec":
        assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
async def test_a_time_that_is_no_number_is_the_clients_mistake(client: httpx.AsyncClient, text: str) -> None:
    made = (await client.post("/v1/devboxes", json={})).json()["id"]
    body = {"statuses": ["shutdown"], "timeout_seconds": text}
    refused(await client.post(f"/v1/devboxes/{made}/wait_for_status", json=body), "timeout_seconds")


@pytest.mark.parametrize("limit", ["0", "5001", "-1", "1.5", "", "9" * 5_000, "9" * 60_000, "٣", "1_0"])
async def test_no_list_is_asked_for_more_than_five_thousand(client: httpx.AsyncClient, limit: str) -> None:
    benchmark = (await client.post("/v1/benchmarks", json={"name": "b"})).json()["id"]
    run = (await client.post("/v1/benchmarks/start_run", json={"benchmark_id": benchmark})).json()["id"]
    for path in (
        *(
            "benchmarks",
            "benchmarks/list_public",
            f"benchmarks/{benchmark}/definitions",
            f"benchmarks/{benchmark}/runs",
        ),
        *("scenarios", "scenarios/list_public", "scenarios/runs", "scenarios/scorers", "secrets", "network-policies"),
        *("benchmark_runs", f"benchmark_runs/{run}/scenario_runs", "benchmarks/runs", "devboxes"),
    ):
        refused(
            await client.get(f"/v1/{path}", params={"limit": limit}), "limit: expected a whole number from 1 to 5000"
        )
        assert (await client.get(f"/v1/{path}", params={"limit": "5000"})).status_code == 200


async def test_a_filter_of_more_values_than_a_statement_takes_is_refused(client: httpx.AsyncClient) -> None:
    refused(await client.get("/v1/devboxes", params={"status": "x," * 10_000}), "status: expected 1000 values at most")


@pytest.mark.parametrize(
    "metadata",
    [
        {str(number): "" for number in range(129)},
        {"k" * 257: ""},
        {"k": "v" * 4_097},
    ],
    ids=["many", "long-key", "long-value"],
)
async def test_metadata_is_bounded_wherever_it_is_given(client: httpx.AsyncClient, metadata: dict[str, str]) -> None:
    scenario = (await client.post("/v1/scenarios", json=SCENARIO)).json()["id"]
    benchmark = (await client.post("/v1/benchmarks", json={"name": "b"})).json()["id"]
    devbox = (await client.post("/v1/devboxes", json={})).json()["id"]
    fits = {str(number).rjust(256): "v" * 4_096 for number in range(128)}
    for path, body in (
        ("scenarios", SCENARIO),
        ("benchmarks", {"name": "b"}),
        ("devboxes", {}),
        (f"devboxes/{devbox}", {}),
        (f"scenarios/{scenario}", {}),
        (f"benchmarks/{benchmark}", {}),
        ("scenarios/start_run", {"scenario_id": scenario}),
        ("benchmarks/start_run", {"benchmark_id": benchmark}),
    ):
        refused(await client.post(f"/v1/{path}", json=body | {"metadata": metadata}), "metadata")
        answer = await client.post(f"/v1/{path}", json=body | {"metadata": fits})
        assert answer.status_code == 200, answer.text


async def test_every_body_has_a_limit_that_fits_its_route(client: httpx.AsyncClient) -> None:
    """Also one that comes in chunks, and does not say how long it is."""
    devbox = (await client.post("/v1/devboxes/create_and_await_running", json={})).json()["id"]
    small, rich = serialization.MAX_BODY, serialization.MAX_RICH_BODY
    for path, limit in (
        ("sweep/heartbeat", small),
        (f"devboxes/{devbox}", small),
        (f"devboxes/{devbox}/wait_for_status", small),
        (f"devboxes/{devbox}/read_file_contents", small),
        (f"devboxes/{devbox}/download_file", small),
        ("network-policies", small),
        ("devboxes", rich),
        ("scenarios", rich),
        ("scenarios/start_run", rich),
        ("benchmarks/start_run", rich),
        (f"devboxes/{devbox}/execute", rich),
    ):

        async def endless(size: int = limit + 1) -> AsyncIterator[bytes]:
            for _ in range(0, size, 1 << 16):
                yield b" " * (1 << 16)

        refused(await client.post(f"/v1/{path}", content=endless()), f"larger than {limit} bytes")


async def test_a_body_of_many_mistakes_is_refused_in_bounded_time(
    client: httpx.AsyncClient,
) -> None:
    for count, words in ((100, "envVars.v60"), (101, "it has 101 mistakes"), (250_000, "more than 250000 values")):
        variables = {f"v{number}": 1 for number in range(count)}
        body = orjson.dumps({"scenario_id": "s", "runProfile": {"envVars": variables}})
        refused(await client.post("/v1/scenarios/start_run", content=body), words)


async def test_an_upload_has_a_limit_and_is_nothing_but_a_form(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    devbox = (await client.post("/v1/devboxes/create_and_await_running", json={})).json()["id"]
    path = f"/v1/devboxes/{devbox}/upload_file"
    monkeypatch.setattr(files, "MAX_UPLOAD", 100_000)
    fits = {"data": {"path": "up"}, "files": {"file": b"x" * 90_000}}
    assert (await client.post(path, **fits)).status_code == 200  # type: ignore[arg-type]
    refused(await client.post(path, data={"path": "up"}, files={"file": b"x" * 200_000}), "larger than 100000 bytes")
    refused(await client.post(path, files=[("file", b"x"), ("file", b"y")], data={"path": "up"}), "Too many files")
    refused(await client.post(path, data={str(n): "x" for n in range(30)}, files={"file": b""}), "Too many fields")
    refused(await client.post(path, data={"path": "x" * 10_000}), "multipart/form-data")
    refused(await client.post(path, json={"path": "x"}), "multipart/form-data")
    refused(await client.post(path, content=b"{", headers={"content-type": "multipart/form-data"}), "oundary")


async def test_a_page_has_a_size_limit_and_the_next_follows(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (store, merged_list):
        monkeypatch.setattr(module, "MAX_PAGE", 10_000)
    monkeypatch.setattr(merged_list, "_STEP", 1)
    large = SCENARIO | {"input_context": {"problem_statement": "p" * 4_000}}
    made = [(await client.post("/v1/scenarios", json=large)).json()["id"] for _ in range(8)]
    benchmark = (await client.post("/v1/benchmarks", json={"name": "b", "scenario_ids": made})).json()["id"]
    for path, order in (("scenarios", made[::-1]), (f"benchmarks/{benchmark}/definitions", made)):
        seen, after, has_more = list[str](), "", True
        while has_more:
            answer = await client.get(f"/v1/{path}", params={"limit": "5000", "starting_after": after})
            assert len(answer.content) < 20_000
            page = answer.json()
            seen += [scenario["id"] for scenario in page["scenarios"]]
            after, has_more = seen[-1], page["has_more"]
        assert seen == order


async def test_a_client_has_a_name_of_bounded_length(client: httpx.AsyncClient) -> None:
    refused(await client.post("/v1/sweep/heartbeat", json={"client": "x" * 201}), "client")
