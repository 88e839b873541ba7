"""The proxy to one devbox: which requests pass, which are refused, and that it closes."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Final

import anyio
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from orchestrator.agentkit.host.devbox_proxy import Access, open_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request

pytestmark = pytest.mark.anyio

BOX: Final = "/v1/devboxes/dbx_1"


@dataclass
class Upstream:
    """An endpoint that notes what it is asked, and answers each path in its own way."""

    url: str = ""
    asked: list[tuple[str, Mapping[str, str], bytes]] = field(default_factory=list)
    more: anyio.Event = field(default_factory=anyio.Event)
    is_left: anyio.Event = field(default_factory=anyio.Event)

    async def answer(self, request: Request) -> Response:
        line = f"{request.method} {request.url.path}{'?' if request.url.query else ''}{request.url.query}"
        if request.url.path.endswith("upload_file"):
            size = 0
            async for piece in request.stream():
                size += len(piece)
            self.asked.append((line, request.headers, str(size).encode()))
            return JSONResponse({"size": size})
        self.asked.append((line, request.headers, await request.body()))
        if request.url.path.endswith("stream_stdout_updates"):
            return StreamingResponse(self.events(), media_type="text/event-stream")
        if request.url.path.endswith("logs"):
            return JSONResponse({"message": "slower"}, status_code=429, headers={"retry-after": "7"})
        return JSONResponse({"id": "dbx_1"})

    async def events(self) -> AsyncIterator[bytes]:
        try:
            yield b"data: 1\n\n"
            await self.more.wait()
            yield b"data: 2\n\n"
        finally:
            self.is_left.set()


@pytest.fixture
async def upstream(anyio_backend: str) -> AsyncIterator[Upstream]:
    upstream = Upstream()
    app = Starlette(routes=[Route("/{path:path}", upstream.answer, methods=["GET", "POST", "PUT", "DELETE"])])
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            yield upstream
            server.should_exit = True


@pytest.fixture
async def access(upstream: Upstream) -> AsyncIterator[Access]:
    async with open_proxy(lambda: (upstream.url, "our-key"), "dbx_1") as access:
        yield access


@pytest.fixture
async def http(access: Access) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {access.token}"}
    async with httpx.AsyncClient(base_url=access.url, headers=headers, trust_env=False) as client:
        yield client


PASSING: Final = (
    f"GET {BOX}",
    f"GET {BOX}/logs?execution_id=exec_1&shell_name=a",
    f"GET {BOX}/executions/exec_1?last_n=10",
    f"GET {BOX}/executions/exec_1/stream_stderr_updates?offset=3",
    f"POST {BOX}/execute",
    f"POST {BOX}/execute_async",
    f"POST {BOX}/execute_sync",
    f"POST {BOX}/wait_for_status",
    f"POST {BOX}/keep_alive",
    f"POST {BOX}/read_file_contents",
    f"POST {BOX}/write_file_contents",
    f"POST {BOX}/download_file",
    f"POST {BOX}/executions/exec_1/wait_for_status",
    f"POST {BOX}/executions/exec_1/kill",
    f"POST {BOX}/executions/exec_1/send_std_in",
)
REFUSED: Final = (
    "GET /v1/devboxes",
    "POST /v1/devboxes",
    "GET /v1/devboxes/dbx_2",
    "GET /v1/devboxes/dbx_12",
    "POST /v1/devboxes/dbx_2/execute",
    f"POST {BOX}",
    f"POST {BOX}/shutdown",
    f"POST {BOX}/suspend",
    f"POST {BOX}/snapshot_disk",
    f"POST {BOX}/create_ssh_key",
    f"GET {BOX}/execute",
    f"DELETE {BOX}/executions/exec_1",
    f"POST {BOX}/../dbx_2/execute",
    f"POST {BOX}/..%2fdbx_2/execute",
    f"POST {BOX}/%2e%2e/dbx_2/execute",
    f"POST {BOX}%2f..%2fdbx_2/execute",
    f"POST {BOX}/./execute",
    f"POST {BOX}//execute",
    f"POST {BOX}/execute/",
    f"POST {BOX}/executions/../../dbx_2/execute",
    f"POST {BOX}/executions/..%2f..%2f..%2fdbx_2/kill",
    f"POST {BOX}\\..\\dbx_2/execute",
    f"POST {BOX};x/execute",
    f"POST /x{BOX}/execute",
    f"GET {BOX}/executions/exec_1/stream_stdout_updates/x",
    "GET /v1/scenarios/runs",
    "POST /v1/scenarios/runs/scr_1/score",
    "GET /",
    f"GET http://elsewhere{BOX}x",
    f"GET {BOX}/logs?id=dbx_2",
    f"GET {BOX}?devbox_id=dbx_2",
)


async def test_work_in_the_devbox_passes_with_our_key(http: httpx.AsyncClient, upstream: Upstream) -> None:
    for line in PASSING:
        method, _, path = line.partition(" ")
        body = b'{"command": "ls"}' if method == "POST" else None
        await http.request(method, path, content=body, headers={"x-request-id": "r1", "cookie": "c"})
        asked, headers, received = upstream.asked.pop()
        assert (asked, received) == (line, body or b"")
        assert (headers["authorization"], headers["x-request-id"]) == ("Bearer our-key", "r1")
        assert "cookie" not in headers


async def test_other_requests_are_refused_by_the_proxy(access: Access, upstream: Upstream) -> None:
    """Asked byte for byte, as no decent client would."""
    for line in REFUSED:
        assert await _ask(access, line) in {400, 403, 404}, line
        assert upstream.asked == [], line


async def _ask(access: Access, line: str) -> int:
    method, _, path = line.partition(" ")
    host, _, port = access.url.removeprefix("http://").partition(":")

    def ask() -> int:
        connection = HTTPConnection(host, int(port), timeout=10)
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.putheader("authorization", f"Bearer {access.token}")
        connection.putheader("content-length", "0")
        connection.endheaders()
        try:
            return connection.getresponse().status
        finally:
            connection.close()

    return await anyio.to_thread.run_sync(ask)


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer our-key", "Bearer devbox_x", "Basic x"])
async def test_only_the_key_of_this_attempt_opens(access: Access, upstream: Upstream, given: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(access.url + BOX, headers={"authorization": given})
    assert (answer.status_code, upstream.asked) == (401, [])


async def test_the_door_is_gone_with_the_attempt_and_no_two_have_one_key(upstream: Upstream) -> None:
    async with open_proxy(lambda: (upstream.url, "k"), "dbx_1") as one, open_proxy(lambda: ("", ""), "dbx_2") as two:
        assert one.token != two.token
        assert await _ask(Access(url=two.url, token=one.token), "GET /v1/devboxes/dbx_2") == 401
    with pytest.raises(ConnectionRefusedError):
        await _ask(one, f"GET {BOX}")


async def test_an_answer_is_passed_on_while_it_comes(http: httpx.AsyncClient, upstream: Upstream) -> None:
    async with http.stream("GET", f"{BOX}/executions/exec_1/stream_stdout_updates") as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "data: 1"
        upstream.more.set()
        assert [line async for line in lines if line] == ["data: 2"]
        assert answer.headers["content-type"].startswith("text/event-stream")


async def test_a_client_that_stops_listening_ends_the_upstream_request(
    http: httpx.AsyncClient, upstream: Upstream
) -> None:
    async with http.stream("GET", f"{BOX}/executions/exec_1/stream_stdout_updates") as answer:
        assert await anext(answer.aiter_lines()) == "data: 1"
    with anyio.fail_after(10):
        await upstream.is_left.wait()


async def test_requests_in_flight_are_cut_off_when_the_attempt_ends(upstream: Upstream) -> None:
    with anyio.fail_after(10):
        async with httpx.AsyncClient(trust_env=False) as client, AsyncExitStack() as stack:
            async with open_proxy(lambda: (upstream.url, "k"), "dbx_1") as access:
                url = f"{access.url}{BOX}/executions/exec_1/stream_stdout_updates"
                asked = client.stream("GET", url, headers={"authorization": f"Bearer {access.token}"})
                lines = (await stack.enter_async_context(asked)).aiter_lines()
                assert await anext(lines) == "data: 1"
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(line async for line in lines if line)
        await upstream.is_left.wait()


async def test_a_large_body_passes_in_pieces(http: httpx.AsyncClient, upstream: Upstream) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(1 << 20)

    answer = await http.post(f"{BOX}/upload_file", content=pieces(), timeout=60)
    assert answer.json() == {"size": 64 << 20}


async def test_a_throttling_answer_of_the_endpoint_is_passed_on(http: httpx.AsyncClient) -> None:
    answer = await http.get(f"{BOX}/logs")
    assert (answer.status_code, answer.headers["retry-after"], answer.json()) == (429, "7", {"message": "slower"})


async def test_an_endpoint_that_moves_is_followed_and_one_that_is_away_is_reported(upstream: Upstream) -> None:
    where = ["http://127.0.0.1:9"]
    async with open_proxy(lambda: (where[0], "k"), "dbx_1") as access:
        assert await _ask(access, f"GET {BOX}") == 502
        where[0] = upstream.url
        assert await _ask(access, f"GET {BOX}") == 200
