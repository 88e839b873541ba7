"""Routes of scenarios."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.http.bodies import ScenarioBody, StartScenarioRunBody
from orchestrator.service.runs.scenario_runs import ScenarioRuns
from orchestrator.service.serialization import list_query, parse, reply, reply_page, request_key


class Scenarios:
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
        return reply(await self._definitions.update_scenario(request.path_params["id"], body.given()))

    async def retrieve(self, request: Request) -> Response:
        return reply(await self._definitions.scenario(request.path_params["id"]))

    async def archive(self, request: Request) -> Response:
        return reply(await self._definitions.archive_scenario(request.path_params["id"]))

    async def unarchive(self, request: Request) -> Response:
        return reply(await self._definitions.unarchive_scenario(request.path_params["id"]))

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
        scenario = await self._definitions.scenario(request.path_params["id"])
        return reply_page("runs", await self._runs.page({"scenario_id": [scenario["id"]]}, list_query(request)))
