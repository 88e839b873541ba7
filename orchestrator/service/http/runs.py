"""Routes of scenario runs."""

from collections.abc import AsyncIterator
from typing import IO, Final

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from orchestrator.service.runs.logs import Logs
from orchestrator.service.runs.scenario_runs import ScenarioRuns
from orchestrator.service.serialization import choice, list_query, reply, reply_page

_PIECE: Final = 1 << 18
_ZIP_HEADERS: Final = {"content-disposition": 'attachment; filename="scenario_run_logs.zip"'}


class ScenarioRunRoutes:
    def __init__(self, runs: ScenarioRuns, logs: Logs) -> None:
        self._runs = runs
        self._logs = logs

    def routes(self) -> list[Route]:
        return [
            Route("/v1/scenarios/runs", self.page, methods=["GET"]),
            Route("/v1/scenarios/runs/{id}", self.retrieve, methods=["GET"]),
            Route("/v1/scenarios/runs/{id}/score", self.score, methods=["POST"]),
            Route("/v1/scenarios/runs/{id}/complete", self.complete, methods=["POST"]),
            Route("/v1/scenarios/runs/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/v1/scenarios/runs/{id}/download_logs", self.download_logs, methods=["POST"]),
        ]

    async def page(self, request: Request) -> Response:
        filters = {key: choice(request, key) for key in ("benchmark_run_id", "scenario_id", "state")}
        filters["name"] = request.query_params.getlist("name") or None
        return reply_page("runs", await self._runs.page(filters, list_query(request)))

    async def retrieve(self, request: Request) -> Response:
        return reply(await self._runs.retrieve(request.path_params["id"]))

    async def score(self, request: Request) -> Response:
        return reply(await self._runs.score(request.path_params["id"]))

    async def complete(self, request: Request) -> Response:
        return reply(await self._runs.complete(request.path_params["id"]))

    async def cancel(self, request: Request) -> Response:
        return reply(await self._runs.cancel(request.path_params["id"]))

    async def download_logs(self, request: Request) -> Response:
        file = await self._logs.zip(request.path_params["id"])
        return StreamingResponse(_pieces(file), headers=_ZIP_HEADERS, media_type="application/zip")


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while piece := await anyio.to_thread.run_sync(file.read, _PIECE):
            yield piece
