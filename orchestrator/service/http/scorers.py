"""Routes of custom scorers."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.http.bodies import ScorerBody
from orchestrator.service.serialization import list_query, parse, reply, reply_page, request_key
from orchestrator.service.store import Document, Page


class Scorers:
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
        return reply(_shown(await self._definitions.update_scorer(request.path_params["id"], body.given())))

    async def retrieve(self, request: Request) -> Response:
        return reply(_shown(await self._definitions.scorer(request.path_params["id"])))

    async def page(self, request: Request) -> Response:
        page = await self._definitions.scorers(list_query(request))
        return reply_page("scorers", Page([_shown(item) for item in page.items], page.has_more, page.total_count))


def _shown(scorer: Document) -> Document:
    """What the published view has; a scorer's name is only there to be searched."""
    return {key: scorer[key] for key in ("id", "type", "bash_script")}
