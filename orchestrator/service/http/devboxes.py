"""Routes of devboxes, their life and their logs, and of network policies. Commands and files have files of their own.

What other devbox services offer and this one does not is answered by name, so that nobody searches for a typing error.
"""

from dataclasses import replace
from typing import Any, ClassVar, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.service.devboxes.executions import Executions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.network import NetworkPolicies
from orchestrator.service.devboxes.requests import (
    DevboxRequest,
    check_paths,
    check_variables,
    mounted_files,
    mounted_install,
)
from orchestrator.service.errors import BadRequest, NotSupported, WaitExpired
from orchestrator.service.http.bodies import NetworkPolicyBody
from orchestrator.service.http.connection import hold_time, while_connected
from orchestrator.service.http.executions import execution_routes
from orchestrator.service.http.files import file_routes
from orchestrator.service.records import DevboxStatus
from orchestrator.service.serialization import (
    MAX_RICH_BODY,
    Body,
    Metadata,
    Title,
    choice,
    list_query,
    parse,
    path_id,
    reply,
    reply_page,
    request_key,
    view,
)

MAX_HOLD_S: Final = 30.0
DEFAULT_HOLD_S: Final = 10.0
CREATE_HOLD_S: Final = 20.0
#: What the published protocol has for devboxes and no provider here can do.
UNSUPPORTED: Final = (
    "/v1/devboxes/disk_snapshots{rest:path}",
    "/v1/devboxes/evictions/watch",
    "/v1/devboxes/metadata/{rest:path}",
    "/v1/devboxes/{id}/suspend",
    "/v1/devboxes/{id}/resume",
    "/v1/devboxes/{id}/snapshot_disk",
    "/v1/devboxes/{id}/snapshot_disk_async",
    "/v1/devboxes/{id}/create_ssh_key",
    "/v1/devboxes/{id}/create_pty_tunnel",
    "/v1/devboxes/{id}/create_gateway_token",
    "/v1/devboxes/{id}/create_mcp_token",
    "/v1/devboxes/{id}/enable_tunnel",
    "/v1/devboxes/{id}/remove_tunnel",
    "/v1/devboxes/{id}/usage",
    "/v1/devboxes/{id}/logs/tail",
)


class _CreateBody(Body):
    limit: ClassVar[int] = MAX_RICH_BODY

    name: Title | None = None
    metadata: Metadata | None = None
    environment_variables: dict[str, str] | None = None
    launch_parameters: dict[str, Any] | None = None
    file_mounts: dict[str, str] | None = None
    mounts: list[dict[str, Any]] | None = None
    blueprint_id: str | None = None
    blueprint_name: Any = None
    snapshot_id: Any = None
    repo_connection_id: Any = None
    code_mounts: Any = None
    entrypoint: Any = None
    secrets: Any = None
    gateways: Any = None
    mcp: Any = None
    tunnel: Any = None


class _UpdateBody(Body):
    name: Title | None = None
    metadata: Metadata | None = None


class _WaitStatusBody(Body):
    statuses: list[DevboxStatus] = Field(min_length=1)
    timeout_seconds: float | None = None


def routes(fleet: Fleet, executions: Executions) -> list[Route]:
    """Every route below /v1/devboxes, in the order in which they must be tried."""
    devboxes = _Devboxes(fleet, executions)
    return [
        Route("/v1/devboxes", devboxes.create, methods=["POST"]),
        Route("/v1/devboxes", devboxes.list, methods=["GET"]),
        Route("/v1/devboxes/create_and_await_running", devboxes.create_and_await_running, methods=["POST"]),
        *(Route(path, _unsupported, methods=["GET", "POST"]) for path in UNSUPPORTED),
        *execution_routes(fleet, executions),
        *file_routes(fleet),
        Route("/v1/devboxes/{id}", devboxes.retrieve, methods=["GET"]),
        Route("/v1/devboxes/{id}", devboxes.update, methods=["POST"]),
        Route("/v1/devboxes/{id}/wait_for_status", devboxes.wait_for_status, methods=["POST"]),
        Route("/v1/devboxes/{id}/shutdown", devboxes.shutdown, methods=["POST"]),
        Route("/v1/devboxes/{id}/keep_alive", devboxes.keep_alive, methods=["POST"]),
        Route("/v1/devboxes/{id}/logs", devboxes.logs, methods=["GET"]),
    ]


async def _unsupported(request: Request) -> Response:
    raise NotSupported(f"{request.method} {request.url.path}: not supported by this service (sweep).")


class _Devboxes:
    def __init__(self, fleet: Fleet, executions: Executions) -> None:
        self._fleet = fleet
        self._executions = executions

    async def create(self, request: Request) -> Response:
        body = await parse(request, _CreateBody)
        return reply(await self._fleet.create(_devbox_request(body), request_key(request)))

    async def create_and_await_running(self, request: Request) -> Response:
        body = await parse(request, _CreateBody)
        devbox = await self._fleet.create(_devbox_request(body), request_key(request))
        ready = (DevboxStatus.RUNNING, DevboxStatus.FAILURE, DevboxStatus.SHUTDOWN)
        try:
            devbox = await while_connected(
                request, lambda: self._fleet.wait_for_status(devbox.id, ready, timeout=CREATE_HOLD_S)
            )
        except WaitExpired:
            devbox = await self._fleet.retrieve(devbox.id)
        return reply(devbox)

    async def list(self, request: Request) -> Response:
        return reply_page("devboxes", await self._fleet.page(list_query(request), choice(request, "status")))

    async def retrieve(self, request: Request) -> Response:
        return reply(await self._fleet.retrieve(path_id(request)))

    async def update(self, request: Request) -> Response:
        body = await parse(request, _UpdateBody)
        return reply(await self._fleet.update(path_id(request), body.given()))

    async def wait_for_status(self, request: Request) -> Response:
        body = await parse(request, _WaitStatusBody)
        hold = hold_time(body.timeout_seconds, default=DEFAULT_HOLD_S, limit=MAX_HOLD_S)
        identity = path_id(request)
        return reply(await while_connected(request, lambda: self._fleet.wait_for_status(identity, body.statuses, hold)))

    async def shutdown(self, request: Request) -> Response:
        return reply(await self._fleet.shutdown(path_id(request)))

    async def keep_alive(self, request: Request) -> Response:
        self._fleet.touch(path_id(request))
        return reply({})

    async def logs(self, request: Request) -> Response:
        query = request.query_params
        logs = await self._executions.logs(
            path_id(request),
            execution_id=query.get("execution_id") or None,
            shell_name=query.get("shell_name") or None,
        )
        return reply({"logs": [view(entry) for entry in logs]})


def _devbox_request(body: _CreateBody) -> DevboxRequest:
    """Raises BadRequest for what this service does not do."""
    for key in (
        "blueprint_name",
        "snapshot_id",
        "repo_connection_id",
        "code_mounts",
        "entrypoint",
        "secrets",
        "gateways",
        "mcp",
        "tunnel",
    ):
        if getattr(body, key):
            raise BadRequest(f"{key}: not supported by this service (sweep).")
    environment = body.environment_variables or {}
    check_variables("environment_variables", environment)
    check_paths("file_mounts", body.file_mounts or ())
    return DevboxRequest(
        name=body.name,
        metadata=body.metadata or {},
        environment_variables=environment,
        blueprint_id=body.blueprint_id,
        launch_parameters=body.launch_parameters or {},
        file_mounts={**(body.file_mounts or {}), **mounted_files("mounts", body.mounts or ())},
        install=mounted_install("mounts", body.mounts or ()),
    )


class NetworkPolicyRoutes:
    def __init__(self, policies: NetworkPolicies) -> None:
        self._policies = policies

    def routes(self) -> list[Route]:
        return [
            Route("/v1/network-policies", self.create, methods=["POST"]),
            Route("/v1/network-policies", self.page, methods=["GET"]),
            Route("/v1/network-policies/{id}", self.retrieve, methods=["GET"]),
            Route("/v1/network-policies/{id}", self.update, methods=["POST"]),
            Route("/v1/network-policies/{id}/delete", self.delete, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await parse(request, NetworkPolicyBody)
        return reply(await self._policies.create(body.given(), request_key(request)))

    async def page(self, request: Request) -> Response:
        params, query = request.query_params, list_query(request)
        named = replace(query, search=params.get("name", "") or query.search)
        return reply_page("network_policies", await self._policies.page({"id": params.get("id") or None}, named))

    async def retrieve(self, request: Request) -> Response:
        return reply(await self._policies.retrieve(path_id(request)))

    async def update(self, request: Request) -> Response:
        body = await parse(request, NetworkPolicyBody)
        return reply(await self._policies.update(path_id(request), body.given()))

    async def delete(self, request: Request) -> Response:
        return reply(await self._policies.delete(path_id(request)))
