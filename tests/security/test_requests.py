"""Requests of a stranger on this machine, or of a broken client, to the service."""

import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Message

from orchestrator.common.address import Address
from orchestrator.core.protocol import Isolation
from orchestrator.service.assembly import Service
from orchestrator.service.errors import BadRequest
from orchestrator.service.http import serialization
from tests.waiting import poll

pytestmark = pytest.mark.anyio
Serving = Callable[[], AbstractAsyncContextManager[tuple[Address, httpx.AsyncClient]]]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with Service.open(state=tmp_path, benchmarks=[], isolation=Isolation.NONE, token="right") as opened:
        yield opened


def client_of(service: Service, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(service.app), base_url="http://x", headers=headers)


async def test_every_route_but_the_proof_and_those_with_keys_wants_the_token_before_anything_else(
    service: Service,
) -> None:
    async with client_of(service) as stranger:
        for route in service.app.routes:
            assert isinstance(route, Route)
            path = route.path.replace("{rest:path}", "/x").replace("{", "").replace("}", "")
            for method in route.methods or ():
                answer = await stranger.request(method, path, content=b"{", headers={"authorization": "Bearer right!"})
                expected = {"/v1/sweep/proof": 400, "/v1/objects/{id}/content": 404}.get(route.path, 401)
                assert answer.status_code == expected, f"{method} {path}"


@pytest.mark.parametrize("depth", [200, 900, 5000])
async def test_a_body_that_nests_too_deeply_is_the_clients_mistake(service: Service, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    async with client_of(service, authorization="Bearer right") as client:
        for path, key in (("/v1/devboxes", "launch_parameters"), ("/v1/scenarios", "input_context")):
            answer = await client.post(path, content=f'{{"name": "x", "{key}": {{"additional_context": {nested}}}}}')
            assert answer.status_code == 400, answer.text


async def test_a_body_without_end_is_not_read_to_its_end() -> None:
    taken = 0

    async def endless() -> Message:
        nonlocal taken
        taken += 10_000
        return {"type": "http.request", "body": b" " * 10_000, "more_body": True}

    with pytest.raises(BadRequest, match="larger than 100000 bytes"):
        await serialization.bounded(Request({"type": "http"}, endless), limit=100_000).body()
    assert taken == 110_000


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e%2f%2e%2e%2faddress.json", "a%00b", "a%0d%0ax:1", "%ff%fe", "x" * 20_000]
)
async def test_no_name_leads_to_a_file_or_into_a_header(service: Service, name: str) -> None:
    routes = ("devboxes/{}", "devboxes/{}/logs", "devboxes/{0}/executions/{0}", "scenarios/runs/{}/download_logs")
    async with client_of(service, authorization="Bearer right") as client:
        for route in (*routes, "scenarios/{}", "benchmarks/{}/definitions", "scenarios/scorers/{}"):
            answer = await client.get(f"/v1/{route.format(name)}", params={"status": "') OR 1=1 --"})
            assert answer.status_code in {200, 404, 405}, answer.text
            assert "x" not in answer.headers
            assert "token" not in answer.text


async def test_a_key_of_idempotency_counts_for_its_path_alone(service: Service) -> None:
    async with client_of(service, authorization="Bearer right", **{"x-request-id": "' OR 1=1 --" * 500}) as client:
        first = (await client.post("/v1/devboxes", json={"name": "one"})).json()["id"]
        again = (await client.post("/v1/devboxes", json={"name": "two"})).json()["id"]
        other = (await client.post("/v1/devboxes/create_and_await_running", json={})).json()["id"]
    assert first == again != other


async def test_the_services_files_are_for_its_owner_only(tmp_path: Path, service: Service) -> None:
    """Also in a folder that everybody can enter: run profiles hold keys, and output whatever agents print."""
    async with client_of(service, authorization="Bearer right") as client:
        devbox = (await client.post("/v1/devboxes/create_and_await_running", json={})).json()["id"]
        await client.post(f"/v1/devboxes/{devbox}/execute", json={"command": "echo x", "command_id": "c"})
        await client.post(f"/v1/devboxes/{devbox}/execute", json={"command": "echo x >&2", "command_id": "d"})
    names = ("service.sqlite", "service.sqlite-wal", "output", f"output/{devbox}", "devboxes", "cache")
    printed = [str(file.relative_to(tmp_path)) for file in (tmp_path / "output" / devbox).iterdir()]
    assert len(printed) == 2
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o077 for name in (*names, *printed)}
    assert set(modes.values()) == {0}, modes


async def test_an_endless_head_is_cut_off_before_its_token_is_read(serving: Serving) -> None:
    async with serving() as (address, client):
        taken = await anyio.to_thread.run_sync(_pour_header, address)
        assert taken < 50 << 20
        assert (await client.get("/v1/sweep")).status_code == 200


def _pour_header(address: Address) -> int:
    """Number of bytes of one header that were taken."""
    host, _, port = address.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as stranger:
        stranger.sendall(b"GET /v1/sweep HTTP/1.1\r\nhost: x\r\nx-a: ")
        for count in range(100):
            try:
                stranger.sendall(b"a" * (1 << 20))
            except OSError:
                return count << 20
    return 100 << 20


async def test_many_requests_on_one_connection_are_counted_each_for_itself(serving: Serving) -> None:
    async with serving() as (_, client):
        for _ in range(30):
            answer = await client.get("/v1/sweep", headers={"x-a": "a" * 50_000})
            assert answer.status_code == 200
        written = await client.post("/v1/devboxes", content=b" " * 3_000_000)
        assert written.status_code == 200


async def test_two_hundred_silent_connections_hold_nobody_up(serving: Serving) -> None:
    async with serving() as (address, client):
        host, _, port = address.url.removeprefix("http://").partition(":")
        silent = [socket.create_connection((host, int(port)), timeout=20) for _ in range(200)]
        try:
            for each in silent[:100]:
                each.send(b"GET /v1/sw")
            with anyio.fail_after(10):
                assert (await client.get("/v1/sweep")).status_code == 200
        finally:
            for each in silent:
                each.close()


async def test_a_download_whose_client_went_away_leaves_no_command_waiting_at_a_pipe(serving: Serving) -> None:
    """An agent may leave a pipe where its patch should be."""
    async with serving() as (_, client):
        devbox = (await client.post("/v1/devboxes/create_and_await_running", json={})).json()["id"]

        async def said(command: str) -> str:
            body: dict[str, Any] = {"command": command, "command_id": f"c{threading.get_ident()}{anyio.current_time()}"}
            answer = await client.post(f"/v1/devboxes/{devbox}/execute", json=body)
            return str(answer.json()["stdout"])

        await said("mkfifo ~/patch")
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"/v1/devboxes/{devbox}/download_file", json={"path": "patch"}, timeout=0.5)
        count = partial(said, "pgrep -fc '^cat .*home/user/patch'")
        await poll(count, lambda answer: answer.strip() == "0", "the reading goes on", seconds=15)
