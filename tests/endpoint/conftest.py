"""A real HTTP server on loopback that does what a test tells it to."""

import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import orjson
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.core.records import Needs
from orchestrator.endpoint.gateway import Gateway

Answer = Callable[[Request], Awaitable[Response]]
Profile = Callable[[Needs], Awaitable[Any]]

RUN: Final = {"id": "scr_1", "devbox_id": "dbx_1", "scenario_id": "scn_1", "state": "running", "metadata": {}}


@dataclass
class Misbehaving:
    """An endpoint: the answers of a path are given in order, the last one for ever. Paths are below `/v1`."""

    url: str = ""
    answers: dict[str, list[Answer | Response]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    requests: list[Request] = field(default_factory=list)

    def on(self, path: str, *answers: Answer | Response | object) -> None:
        """Responses as they are, functions of the request, anything else as JSON."""
        self.answers[path] = [each if callable(each) else JSONResponse(each) for each in answers]

    async def answer(self, request: Request) -> Response:
        path = request.url.path.removeprefix("/v1")
        self.calls[path] += 1
        self.requests.append(request)
        answers = self.answers.get(path)
        if answers is None:
            return JSONResponse({"message": f"nothing at {path}"}, status_code=404)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer if isinstance(answer, Response) else await answer(request)


@pytest.fixture
async def endpoint(anyio_backend: str) -> AsyncIterator[Misbehaving]:
    misbehaving = Misbehaving()
    app = Starlette(routes=[Route("/{path:path}", misbehaving.answer, methods=["GET", "POST"])])
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        misbehaving.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            yield misbehaving
            server.should_exit = True


@pytest.fixture
async def gateway(endpoint: Misbehaving) -> AsyncIterator[Gateway]:
    async with Gateway.open(endpoint.url, "secret", rate=None) as opened:
        yield opened


@pytest.fixture
def profile(gateway: Gateway, endpoint: Misbehaving) -> Profile:
    """The run profile that a run with these needs is started with."""

    async def profile(needs: Needs) -> Any:
        bodies: list[bytes] = []

        async def start(request: Request) -> Response:
            bodies.append(await request.body())
            return JSONResponse(RUN)

        endpoint.on("/scenarios/start_run", start)
        await gateway.start_run(
            "scn_1", benchmark_run_id=None, name="n", metadata={}, keep_alive=60, needs=needs, key="k"
        )
        return orjson.loads(bodies[0])["runProfile"]

    return profile
