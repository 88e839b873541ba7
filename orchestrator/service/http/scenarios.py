"""Routes of scenarios, of their runs and of custom scorers."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, ClassVar, Final

import anyio
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.devboxes.requests import MAX_KEEP_ALIVE_S
from orchestrator.service.http import serialization as wire
from orchestrator.service.records import RunProfile
from orchestrator.service.runs.scenario_runs import ScenarioRuns
from orchestrator.service.runs.start_request import StartRequest
from orchestrator.service.store import Document

_PIECE: Final = 1 << 18
_ZIP_HEADERS: Final = {"content-disposition": 'attachment; filename="scenario_run_logs.zip"'}


class _RunProfileBody(wire.Body):
    env_vars: dict[str, str] | None = Field(default=None, alias="envVars")
    launch_parameters: dict[str, Any] | None = Field(default=None, alias="launchParameters")
    mounts: list[dict[str, Any]] | None = None
    purpose: str | None = None
    secrets: dict[str, str] | None = None

    def profile(self) -> RunProfile:
        """Make the record of it; a launch parameter sent as null counts as not sent."""
        return RunProfile(
            environment=self.env_vars or {},
            secrets=self.secrets or {},
            launch_parameters={k: v for k, v in (self.launch_parameters or {}).items() if v is not None},
            mounts=tuple(self.mounts or ()),
            purpose=self.purpose,
        )


class StartBody(wire.Body):
    limit: ClassVar[int] = wire.MAX_RICH_BODY_BYTES

    metadata: wire.Metadata | None = None
    run_name: wire.Title | None = None
    run_profile: _RunProfileBody | None = Field(default=None, alias="runProfile")

    def request_for(self, definition_id: str, benchmark_run_id: str | None = None) -> StartRequest:
        return StartRequest(
            definition_id=definition_id,
            name=self.run_name,
            metadata=self.metadata or {},
            profile=(self.run_profile or _RunProfileBody()).profile(),
            benchmark_run_id=benchmark_run_id or None,
        )


class _StartScenarioRunBody(StartBody):
    scenario_id: str
    benchmark_run_id: str | None = None

    def start_request(self) -> StartRequest:
        return self.request_for(self.scenario_id, self.benchmark_run_id)


class _InputContextBody(wire.Body):
    problem_statement: str | None = None
    additional_context: Any = None


class _ScoringContractBody(wire.Body):
    scoring_function_parameters: list[dict[str, Any]] | None = None


class _EnvironmentBody(wire.Body):
    blueprint_id: str | None = None
    snapshot_id: str | None = None
    working_directory: str | None = None
    launch_parameters: dict[str, Any] | None = None


class _ScenarioBody(wire.Body):
    """To create or update a scenario."""

    limit: ClassVar[int] = wire.MAX_RICH_BODY_BYTES

    name: wire.Title | None = None
    input_context: _InputContextBody | None = None
    scoring_contract: _ScoringContractBody | None = None
    environment_parameters: _EnvironmentBody | None = None
    metadata: wire.Metadata | None = None
    reference_output: str | None = None
    required_environment_variables: list[str] | None = None
    required_secret_names: list[str] | None = None
    scorer_timeout_sec: int | None = Field(default=None, le=MAX_KEEP_ALIVE_S)
    validation_type: str | None = None


class _ScorerBody(wire.Body):
    """To create or update a custom scorer."""

    limit: ClassVar[int] = wire.MAX_RICH_BODY_BYTES

    type: wire.Title | None = None
    bash_script: str | None = None


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
        body = await wire.parse(request, _ScenarioBody)
        return wire.reply(await self._definitions.create_scenario(body.given(), wire.request_key(request)))

    async def update(self, request: Request) -> Response:
        body = await wire.parse(request, _ScenarioBody)
        return wire.reply(await self._definitions.update_scenario(wire.path_id(request), body.given()))

    async def retrieve(self, request: Request) -> Response:
        return wire.reply(await self._definitions.scenario(wire.path_id(request)))

    async def archive(self, request: Request) -> Response:
        return wire.reply(await self._definitions.archive_scenario(wire.path_id(request)))

    async def unarchive(self, request: Request) -> Response:
        return wire.reply(await self._definitions.unarchive_scenario(wire.path_id(request)))

    async def page(self, request: Request) -> Response:
        params = request.query_params
        page = await self._definitions.scenarios(
            wire.list_query(request),
            name=params.get("name"),
            benchmark_id=params.get("benchmark_id"),
            validation_type=params.get("validation_type"),
        )
        return wire.reply_page("scenarios", page)

    async def page_public(self, request: Request) -> Response:
        name = request.query_params.get("name")
        page = await self._definitions.scenarios(wire.list_query(request), name=name, public_only=True)
        return wire.reply_page("scenarios", page)

    async def start_run(self, request: Request) -> Response:
        body = await wire.parse(request, _StartScenarioRunBody)
        return wire.reply(await self._runs.start(body.start_request(), wire.request_key(request)))

    async def page_of_runs(self, request: Request) -> Response:
        await self._definitions.scenario(wire.path_id(request))
        return wire.reply_page(
            "runs", await self._runs.page({"scenario_id": wire.path_id(request)}, wire.list_query(request))
        )


class ScenarioRunRoutes:
    def __init__(self, runs: ScenarioRuns) -> None:
        self._runs = runs

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
        filters = {key: wire.choice(request, key) for key in ("benchmark_run_id", "scenario_id", "state")}
        filters |= {"name": request.query_params.getlist("name") or None}
        return wire.reply_page("runs", await self._runs.page(filters, wire.list_query(request)))

    async def retrieve(self, request: Request) -> Response:
        return wire.reply(await self._runs.retrieve(wire.path_id(request)))

    async def score(self, request: Request) -> Response:
        return wire.reply(await self._runs.score(wire.path_id(request)))

    async def complete(self, request: Request) -> Response:
        return wire.reply(await self._runs.complete(wire.path_id(request)))

    async def cancel(self, request: Request) -> Response:
        return wire.reply(await self._runs.cancel(wire.path_id(request)))

    async def download_logs(self, request: Request) -> Response:
        file = await self._runs.zip_logs(wire.path_id(request))

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
        body = await wire.parse(request, _ScorerBody)
        return wire.reply(_shown(await self._definitions.create_scorer(body.given(), wire.request_key(request))))

    async def update(self, request: Request) -> Response:
        body = await wire.parse(request, _ScorerBody)
        return wire.reply(_shown(await self._definitions.update_scorer(wire.path_id(request), body.given())))

    async def retrieve(self, request: Request) -> Response:
        return wire.reply(_shown(await self._definitions.scorer(wire.path_id(request))))

    async def page(self, request: Request) -> Response:
        page = await self._definitions.scorers(wire.list_query(request))
        return wire.reply_page("scorers", replace(page, items=[_shown(item) for item in page.items]))


def _shown(scorer: Document) -> Document:
    """Keep what the published view has; a scorer's name is only there to be searched."""
    return {key: scorer[key] for key in ("id", "type", "bash_script")}
