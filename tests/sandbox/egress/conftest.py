"""A whole service without a socket, the published client that speaks to it, and something to reach on loopback."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.abc import ByteStream, SocketAttribute
from runloop_api_client import AsyncRunloop

from orchestrator.core.protocol import Isolation
from orchestrator.service.assembly import Service

Serve = Callable[..., AbstractAsyncContextManager[AsyncRunloop]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def serve(isolation: Isolation, *, lends_network: bool = False) -> AsyncIterator[AsyncRunloop]:
        opened = Service.open(
            state=tmp_path, benchmarks=(), isolation=isolation, token="t", lends_network=lends_network
        )
        async with opened as service:
            http = httpx.AsyncClient(transport=httpx.ASGITransport(service.app))
            async with AsyncRunloop(bearer_token="t", base_url="http://s", max_retries=0, http_client=http) as client:
                yield client

    return serve


@pytest.fixture
async def client(serve: Serve, sandboxes: None) -> AsyncIterator[AsyncRunloop]:
    """Of a service whose devboxes have walls."""
    async with serve(Isolation.LOCAL) as client:
        yield client


@pytest.fixture
async def greeting() -> AsyncIterator[int]:
    """The port of a server on loopback that says hello."""

    async def greet(stream: ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, greet)
        yield int(listener.extra(SocketAttribute.local_port))
        tasks.cancel_scope.cancel()


@pytest.fixture
def running() -> Callable[[AsyncRunloop, str], Awaitable[str]]:
    """Waits until a devbox is what it will be; returns its status."""

    async def running(client: AsyncRunloop, devbox: str) -> str:
        body = {"statuses": ["running", "failure", "shutdown"], "timeout_seconds": 30}
        answer = await client.post(f"/v1/devboxes/{devbox}/wait_for_status", body=body, cast_to=httpx.Response)
        return str(answer.json()["status"])

    return running
