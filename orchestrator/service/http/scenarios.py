"""Routes of scenarios, of their runs and of custom scorers."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.http.bodies import ScenarioBody, ScorerBody, StartScenarioRunBody
from orchestrator.service.runs.logs import Logs
from orchestrator.service.runs.scenario_runs import ScenarioRuns
from orchestrator.service.serialization import choice, list_query, parse, path_id, reply, reply_page, request_key
from orchestrator.service.store import Document

_PIECE: Final = 1 << 18
_ZIP_HEADERS: Final = {"content-disposition": 'attachment; filename="scenario_run_logs.zip"'}


class ScenarioRoutes:
    """Fixed words come before `{id}` in the order of the routes, or they would be taken for one."""

    def __init__(self, definitions: Definitions, runs: ScenarioRuns) -> None:
        self._definitions = definitions
        self._runs = runs

    def routes(self) -> list[Route]:
        """To be placed after those of scorers and scenario runs, whose paths `{id}` would swallow."""
        return [
            Route("/v1/scenarios", self.create, methods=["POST"]),
            Route("/v1/scenarios", self.page, methods=["GET"]),
            Route("/v1/scenarios/list_public", self.page_public, methods=["GET"]),
            Route("/v1/scenarios/start_run", self.start_run, methods=["POST"]),
            Route("/v1/scenarios/{id}", self.retrieve, methods=["GET"]),
            Route("/v1/scenarios/{id}", self.update, methods=["POST"]),
            Route("/v1/scenarios/{id}/archive", self.archive, methods=["POST"]),
            Route("/v1/scenarios/{id}/unarchive", self.unarchive, methods=["POST"]),
            Route("/v1/scenarios/{id}/runs", self.page_of_runs, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await parse(request, ScenarioBody)
        return reply(await self._definitions.create_scenario(body.given(), request_key(request)))

    async def update(self, request: Request) -> Response:
        body = await parse(request, ScenarioBody)
        return reply(await self._definitions.update_scenario(path_id(request), body.given()))

    async def retrieve(self, request: Request) -> Response:
        return reply(await self._definitions.scenario(path_id(request)))

    async def archive(self, request: Request) -> Response:
        return reply(await self._definitions.archive_scenario(path_id(request)))

    async def unarchive(self, request: Request) -> Response:
        return reply(await self._definitions.unarchive_scenario(path_id(request)))

    async def page(self, request: Request) -> Response:
        params = request.query_params
        page = await self._definitions.scenarios(
            list_query(request),
            name=params.get("name"),
            benchmark_id=params.get("benchmark_id"),
            validation_type=params.get("validation_type"),
        )
        return reply_page("scenarios", page)

    async def page_public(self, request: Request) -> Response:
        name = request.query_params.get("name")
        page = await self._definitions.scenarios(list_query(request), name=name, public_only=True)
        return reply_page("scenarios", page)

    async def start_run(self, request: Request) -> Response:
        body = await parse(request, StartScenarioRunBody)
        return reply(await self._runs.start(body.start_request(), request_key(request)))

    async def page_of_runs(self, request: Request) -> Response:
        await self._definitions.scenario(path_id(request))
        return reply_page("runs", await self._runs.page({"scenario_id": path_id(request)}, list_query(request)))


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
        filters |= {"name": request.query_params.getlist("name") or None}
        return reply_page("runs", await self._runs.page(filters, list_query(request)))

    async def retrieve(self, request: Request) -> Response:
        return reply(await self._runs.retrieve(path_id(request)))

    async def score(self, request: Request) -> Response:
        return reply(await self._runs.score(path_id(request)))

    async def complete(self, request: Request) -> Response:
        return reply(await self._runs.complete(path_id(request)))

    async def cancel(self, request: Request) -> Response:
        return reply(await self._runs.cancel(path_id(request)))

    async def download_logs(self, request: Request) -> Response:
        file = await self._logs.zip(path_id(request))

        async def pieces() -> AsyncIterator[bytes]:
            with file:
                while piece := await anyio.to_thread.run_sync(file.read, _PIECE):
                    yield piece

        return StreamingResponse(pieces(), headers=_ZIP_HEADERS, media_type="application/zip")


class ScorerRoutes:
    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions

    def routes(self) -> list[Route]:
        return [
            Route("/v1/scenarios/scorers", self.create, methods=["POST"]),
            Route("/v1/scenarios/scorers", self.page, methods=["GET"]),
            Route("/v1/scenarios/scorers/{id}", self.retrieve, methods=["GET"]),
            Route("/v1/scenarios/scorers/{id}", self.update, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await parse(request, ScorerBody)
        return reply(_shown(await self._definitions.create_scorer(body.given(), request_key(request))))

    async def update(self, request: Request) -> Response:
        body = await parse(request, ScorerBody)
        return reply(_shown(await self._definitions.update_scorer(path_id(request), body.given())))

    async def retrieve(self, request: Request) -> Response:
        return reply(_shown(await self._definitions.scorer(path_id(request))))

    async def page(self, request: Request) -> Response:
        page = await self._definitions.scorers(list_query(request))
        return reply_page("scorers", replace(page, items=[_shown(item) for item in page.items]))


def _shown(scorer: Document) -> Document:
    """Keep what the published view has; a scorer's name is only there to be searched."""
    return {key: scorer[key] for key in ("id", "type", "bash_script")}
