"""Routes of benchmarks and of their runs, the runs on the published path and on the one of old clients."""

from typing import ClassVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.service.definitions.catalog import Choice
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.http import serialization as wire
from orchestrator.service.http.scenarios import StartBody
from orchestrator.service.records import view
from orchestrator.service.runs.benchmark_runs import BenchmarkRuns
from orchestrator.service.runs.scenario_runs import ScenarioRuns
from orchestrator.service.runs.start_request import StartRequest


class _BenchmarkBody(wire.Body):
    """To create or update a benchmark."""

    limit: ClassVar[int] = wire.MAX_RICH_BODY_BYTES

    name: wire.Title | None = None
    attribution: str | None = None
    description: str | None = None
    metadata: wire.Metadata | None = None
    required_environment_variables: list[str] | None = None
    required_secret_names: list[str] | None = None
    scenario_ids: wire.Ids | None = None


class _BenchmarkScenariosBody(wire.Body):
    """To change which scenarios a benchmark has."""

    limit: ClassVar[int] = wire.MAX_RICH_BODY_BYTES

    scenarios_to_add: wire.Ids | None = None
    scenarios_to_remove: wire.Ids | None = None


class _StartBenchmarkRunBody(StartBody):
    benchmark_id: str

    def start_request(self) -> StartRequest:
        return self.request_for(self.benchmark_id)


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
        body = await wire.parse(request, _BenchmarkBody)
        return wire.reply(await self._definitions.create_benchmark(body.given(), wire.request_key(request)))

    async def update(self, request: Request) -> Response:
        body = await wire.parse(request, _BenchmarkBody)
        identity = wire.path_id(request)
        return wire.reply(await self._definitions.update_benchmark(identity, body.given()))

    async def update_scenarios(self, request: Request) -> Response:
        body = await wire.parse(request, _BenchmarkScenariosBody)
        return wire.reply(
            await self._definitions.update_benchmark_scenarios(
                wire.path_id(request),
                add=body.scenarios_to_add or (),
                remove=body.scenarios_to_remove or (),
            )
        )

    async def retrieve(self, request: Request) -> Response:
        return wire.reply(await self._definitions.benchmark(wire.path_id(request)))

    async def page(self, request: Request) -> Response:
        name = request.query_params.get("name")
        return wire.reply_page("benchmarks", await self._definitions.benchmarks(wire.list_query(request), name=name))

    async def page_public(self, request: Request) -> Response:
        name = request.query_params.get("name")
        page = await self._definitions.benchmarks(wire.list_query(request), name=name, public_only=True)
        return wire.reply_page("benchmarks", page)

    async def definitions(self, request: Request) -> Response:
        chosen = Choice(include=wire.globs(request, "include"), exclude=wire.globs(request, "exclude"))
        found = await self._definitions.definitions(wire.path_id(request), wire.list_query(request), chosen)
        return wire.reply({**found, "scenarios": [view(each) for each in found.get("scenarios", ())]})

    async def start_run(self, request: Request) -> Response:
        body = await wire.parse(request, _StartBenchmarkRunBody)
        return wire.reply(await self._runs.start(body.start_request(), wire.request_key(request)))

    async def page_of_runs(self, request: Request) -> Response:
        await self._definitions.benchmark(wire.path_id(request))
        return wire.reply_page(
            "runs", await self._runs.page({"benchmark_id": wire.path_id(request)}, wire.list_query(request))
        )


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
        filters = {key: wire.choice(request, key) for key in ("benchmark_id", "state")}
        filters |= {"name": request.query_params.getlist("name") or None}
        return wire.reply_page("runs", await self._runs.page(filters, wire.list_query(request)))

    async def retrieve(self, request: Request) -> Response:
        return wire.reply(await self._runs.retrieve(wire.path_id(request)))

    async def complete(self, request: Request) -> Response:
        return wire.reply(await self._runs.complete(wire.path_id(request)))

    async def cancel(self, request: Request) -> Response:
        return wire.reply(await self._runs.cancel(wire.path_id(request)))

    async def page_of_scenario_runs(self, request: Request) -> Response:
        identity = wire.path_id(request)
        await self._runs.need(identity)
        filters = {"benchmark_run_id": [identity], "state": wire.choice(request, "state")}
        return wire.reply_page("runs", await self._scenario_runs.page(filters, wire.list_query(request)))
