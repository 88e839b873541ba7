"""Routes of benchmarks and of their runs, the runs on the published path and on the one of old clients."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.service.definitions.catalog import Choice
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.http.bodies import BenchmarkBody, BenchmarkScenariosBody, StartBenchmarkRunBody
from orchestrator.service.runs.benchmark_runs import BenchmarkRuns
from orchestrator.service.runs.scenario_runs import ScenarioRuns
from orchestrator.service.serialization import (
    choice,
    globs,
    list_query,
    parse,
    path_id,
    reply,
    reply_page,
    request_key,
    view,
)


class BenchmarkRoutes:
    """Fixed words come before `{id}` in the order of the routes, or they would be taken for one."""

    def __init__(self, definitions: Definitions, runs: BenchmarkRuns) -> None:
        self._definitions = definitions
        self._runs = runs

    def routes(self) -> list[Route]:
        return [
            Route("/v1/benchmarks", self.create, methods=["POST"]),
            Route("/v1/benchmarks", self.page, methods=["GET"]),
            Route("/v1/benchmarks/list_public", self.page_public, methods=["GET"]),
            Route("/v1/benchmarks/start_run", self.start_run, methods=["POST"]),
            Route("/v1/benchmarks/{id}", self.retrieve, methods=["GET"]),
            Route("/v1/benchmarks/{id}", self.update, methods=["POST"]),
            Route("/v1/benchmarks/{id}/definitions", self.definitions, methods=["GET"]),
            Route("/v1/benchmarks/{id}/scenarios", self.update_scenarios, methods=["POST"]),
            Route("/v1/benchmarks/{id}/runs", self.page_of_runs, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await parse(request, BenchmarkBody)
        return reply(await self._definitions.create_benchmark(body.given(), request_key(request)))

    async def update(self, request: Request) -> Response:
        body = await parse(request, BenchmarkBody)
        identity = path_id(request)
        return reply(await self._definitions.update_benchmark(identity, body.given()))

    async def update_scenarios(self, request: Request) -> Response:
        body = await parse(request, BenchmarkScenariosBody)
        return reply(
            await self._definitions.update_benchmark_scenarios(
                path_id(request),
                add=body.scenarios_to_add or (),
                remove=body.scenarios_to_remove or (),
            )
        )

    async def retrieve(self, request: Request) -> Response:
        return reply(await self._definitions.benchmark(path_id(request)))

    async def page(self, request: Request) -> Response:
        name = request.query_params.get("name")
        return reply_page("benchmarks", await self._definitions.benchmarks(list_query(request), name=name))

    async def page_public(self, request: Request) -> Response:
        name = request.query_params.get("name")
        page = await self._definitions.benchmarks(list_query(request), name=name, public_only=True)
        return reply_page("benchmarks", page)

    async def definitions(self, request: Request) -> Response:
        chosen = Choice(include=globs(request, "include"), exclude=globs(request, "exclude"))
        found = await self._definitions.definitions(path_id(request), list_query(request), chosen)
        return reply({**found, "scenarios": [view(each) for each in found.get("scenarios", ())]})

    async def start_run(self, request: Request) -> Response:
        body = await parse(request, StartBenchmarkRunBody)
        return reply(await self._runs.start(body.start_request(), request_key(request)))

    async def page_of_runs(self, request: Request) -> Response:
        await self._definitions.benchmark(path_id(request))
        return reply_page("runs", await self._runs.page({"benchmark_id": path_id(request)}, list_query(request)))


class BenchmarkRunRoutes:
    def __init__(self, runs: BenchmarkRuns, scenario_runs: ScenarioRuns) -> None:
        self._runs = runs
        self._scenario_runs = scenario_runs

    def routes(self) -> list[Route]:
        """To be placed before the routes of benchmarks, whose `{id}` would swallow the old path."""
        return [
            route
            for root in ("/v1/benchmark_runs", "/v1/benchmarks/runs")
            for route in (
                Route(root, self.page, methods=["GET"]),
                Route(f"{root}/{{id}}", self.retrieve, methods=["GET"]),
                Route(f"{root}/{{id}}/complete", self.complete, methods=["POST"]),
                Route(f"{root}/{{id}}/cancel", self.cancel, methods=["POST"]),
                Route(f"{root}/{{id}}/scenario_runs", self.page_of_scenario_runs, methods=["GET"]),
            )
        ]

    async def page(self, request: Request) -> Response:
        filters = {key: choice(request, key) for key in ("benchmark_id", "state")}
        filters |= {"name": request.query_params.getlist("name") or None}
        return reply_page("runs", await self._runs.page(filters, list_query(request)))

    async def retrieve(self, request: Request) -> Response:
        return reply(await self._runs.retrieve(path_id(request)))

    async def complete(self, request: Request) -> Response:
        return reply(await self._runs.complete(path_id(request)))

    async def cancel(self, request: Request) -> Response:
        return reply(await self._runs.cancel(path_id(request)))

    async def page_of_scenario_runs(self, request: Request) -> Response:
        identity = path_id(request)
        await self._runs.need(identity)
        filters = {"benchmark_run_id": [identity], "state": choice(request, "state")}
        return reply_page("runs", await self._scenario_runs.page(filters, list_query(request)))
