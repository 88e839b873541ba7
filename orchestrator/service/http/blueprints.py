"""Routes of blueprints, and of the objects that are their build contexts."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, ClassVar, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from orchestrator.service.devboxes.blueprints import Blueprints
from orchestrator.service.environments.objects import Objects
from orchestrator.service.errors import BadRequest, Unwritable
from orchestrator.service.http import serialization as wire
from orchestrator.service.http.app import KNOWN
from orchestrator.service.http.files import MAX_UPLOAD_BYTES
from orchestrator.service.records import ObjectRecord, view

#: What a blueprint may have elsewhere and no provider here can do.
_UNSERVED: Final = ("code_mounts", "network_policy_id", "secrets", "services")


class _BlueprintBody(wire.Body):
    limit: ClassVar[int] = wire.MAX_RICH_BODY_BYTES

    name: wire.Title = Field(min_length=1)
    dockerfile: str | None = None
    system_setup_commands: list[str] | None = None
    file_mounts: dict[str, str] | None = None
    launch_parameters: dict[str, Any] | None = None
    build_args: dict[str, str] | None = None
    build_context: dict[str, Any] | None = None
    base_blueprint_id: str | None = None
    base_blueprint_name: str | None = None
    metadata: wire.Metadata | None = None
    code_mounts: Any = None
    network_policy_id: Any = None
    secrets: Any = None
    services: Any = None

    def fields(self) -> dict[str, Any]:
        """Return what was sent. Raises BadRequest for what this service does not do."""
        for key in _UNSERVED:
            if getattr(self, key):
                raise BadRequest(f"{key}: not supported by this service (sweep).")
        return {key: value for key, value in self.given().items() if key not in _UNSERVED}


class _ObjectBody(wire.Body):
    name: wire.Title
    content_type: str
    metadata: wire.Metadata | None = None
    ttl_ms: int | None = Field(default=None, ge=1, le=10**14)


class BlueprintRoutes:
    def __init__(self, blueprints: Blueprints) -> None:
        self._blueprints = blueprints

    def routes(self) -> list[Route]:
        return [
            Route("/v1/blueprints", self.create, methods=["POST"]),
            Route("/v1/blueprints", self.page, methods=["GET"]),
            Route("/v1/blueprints/list_public", _nothing("blueprints"), methods=["GET"]),
            Route("/v1/blueprints/preview", self.preview, methods=["POST"]),
            Route("/v1/blueprints/{id}", self.retrieve, methods=["GET"]),
            Route("/v1/blueprints/{id}/delete", self.delete, methods=["POST"]),
            Route("/v1/blueprints/{id}/logs", self.logs, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await wire.parse(request, _BlueprintBody)
        return wire.reply(await self._blueprints.create(body.fields(), wire.request_key(request)))

    async def preview(self, request: Request) -> Response:
        body = await wire.parse(request, _BlueprintBody)
        return wire.reply({"dockerfile": await self._blueprints.preview(body.fields())})

    async def page(self, request: Request) -> Response:
        filters = {"name": request.query_params.get("name") or None, "status": wire.choice(request, "status")}
        return wire.reply_page("blueprints", await self._blueprints.page(filters, wire.list_query(request)))

    async def retrieve(self, request: Request) -> Response:
        return wire.reply(await self._blueprints.retrieve(wire.path_id(request)))

    async def delete(self, request: Request) -> Response:
        await self._blueprints.delete(wire.path_id(request))
        return wire.reply({})

    async def logs(self, request: Request) -> Response:
        identity = wire.path_id(request)
        lines = await self._blueprints.logs(identity)
        return wire.reply({"blueprint_id": identity, "logs": [view(line) for line in lines]})


class ObjectRoutes:
    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def routes(self) -> list[Route]:
        return [
            Route("/v1/objects", self.create, methods=["POST"]),
            Route("/v1/objects", self.page, methods=["GET"]),
            Route("/v1/objects/list_public", _nothing("objects"), methods=["GET"]),
            Route("/v1/objects/{id}", self.retrieve, methods=["GET"]),
            Route("/v1/objects/{id}/complete", self.complete, methods=["POST"]),
            Route("/v1/objects/{id}/delete", self.delete, methods=["POST"]),
            Route("/v1/objects/{id}/download", self.download, methods=["GET"]),
            Route("/v1/objects/{id}/content", self.receive, methods=["PUT"]),
            Route("/v1/objects/{id}/content", self.send, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await wire.parse(request, _ObjectBody)
        made = await self._objects.create(body.given(), wire.request_key(request))
        return wire.reply({**view(made), "upload_url": _address(request, made)})

    async def page(self, request: Request) -> Response:
        filters = {"state": wire.choice(request, "state"), "content_type": wire.choice(request, "content_type")}
        query = wire.list_query(request)
        named = replace(query, search=request.query_params.get("name", "") or query.search)
        return wire.reply_page("objects", await self._objects.page(filters, named))

    async def retrieve(self, request: Request) -> Response:
        return wire.reply(await self._objects.retrieve(wire.path_id(request)))

    async def complete(self, request: Request) -> Response:
        return wire.reply(await self._objects.complete(wire.path_id(request)))

    async def delete(self, request: Request) -> Response:
        return wire.reply(await self._objects.delete(wire.path_id(request)))

    async def download(self, request: Request) -> Response:
        found = await self._objects.readable(wire.path_id(request))
        return wire.reply({"download_url": _address(request, found)})

    async def receive(self, request: Request) -> Response:
        found = await self._at_its_address(request)
        try:
            await self._objects.receive(found, wire.bounded(request, MAX_UPLOAD_BYTES).stream())
        except OSError as error:
            raise Unwritable(f"The content cannot be kept: {error}") from None
        return wire.reply({})

    async def send(self, request: Request) -> Response:
        found = await self._objects.readable((await self._at_its_address(request)).id)
        return FileResponse(self._objects.content(found.id), media_type="application/octet-stream")

    async def _at_its_address(self, request: Request) -> ObjectRecord:
        """Find the object of an address that was given out. Raises NotFound for a wrong key."""
        found = await self._objects.at(wire.path_id(request), request.query_params.get("key", ""))
        if connection := request.scope.get("extensions", {}).get(KNOWN):
            connection["call"]()
        return found


def _address(request: Request, found: ObjectRecord) -> str:
    return f"{request.base_url}v1/objects/{found.id}/content?key={found.key}"


def _nothing(key: str) -> Callable[[Request], Awaitable[Response]]:
    """Make the handler of a list that is empty: nobody's things here are everybody's."""

    async def empty(_request: Request) -> Response:
        return wire.reply({key: [], "has_more": False, "total_count": 0})

    return empty
