"""Routes of devboxes, their life and their logs, and of network policies. Commands and files have files of their own.

Routes of other devbox services that this one does not have are refused by name: a bare 404 would look like a typing
error.
"""

from dataclasses import replace
from typing import Any, ClassVar, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.core.protocol import DevboxStatus
from orchestrator.service.devboxes import requests
from orchestrator.service.devboxes.executions import Executions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.network import NetworkPolicies
from orchestrator.service.devboxes.snapshots import Snapshots
from orchestrator.service.errors import BadRequest, NotSupported, WaitExpired
from orchestrator.service.http import serialization as wire
from orchestrator.service.http.app import hold_time, while_connected
from orchestrator.service.http.executions import execution_routes
from orchestrator.service.http.files import file_routes
from orchestrator.service.records import SnapshotRecord, SnapshotStatus, view

MAX_HOLD_S: Final = 30.0
DEFAULT_HOLD_S: Final = 10.0
CREATE_HOLD_S: Final = 20.0
SNAPSHOT_HOLD_S: Final = 600.0
#: What the published protocol has for devboxes and no provider here can do.
UNSUPPORTED: Final = (
    "/v1/devboxes/disk_snapshots{rest:path}",
    "/v1/devboxes/evictions/watch",
    "/v1/devboxes/metadata/{rest:path}",
    "/v1/devboxes/{id}/create_ssh_key",
    "/v1/devboxes/{id}/create_pty_tunnel",
    "/v1/devboxes/{id}/create_gateway_token",
    "/v1/devboxes/{id}/create_mcp_token",
    "/v1/devboxes/{id}/enable_tunnel",
    "/v1/devboxes/{id}/remove_tunnel",
    "/v1/devboxes/{id}/usage",
    "/v1/devboxes/{id}/logs/tail",
)


class _CreateBody(wire.Body):
    limit: ClassVar[int] = wire.MAX_RICH_BODY_BYTES

    name: wire.Title | None = None
    metadata: wire.Metadata | None = None
    environment_variables: dict[str, str] | None = None
    launch_parameters: dict[str, Any] | None = None
    file_mounts: dict[str, str] | None = None
    mounts: list[dict[str, Any]] | None = None
    blueprint_id: str | None = None
    blueprint_name: str | None = None
    snapshot_id: str | None = None
    repo_connection_id: Any = None
    code_mounts: Any = None
    entrypoint: Any = None
    secrets: Any = None
    gateways: Any = None
    mcp: Any = None
    tunnel: Any = None


class _UpdateBody(wire.Body):
    name: wire.Title | None = None
    metadata: wire.Metadata | None = None


class _WaitStatusBody(wire.Body):
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
        *execution_routes(executions),
        *file_routes(fleet),
        Route("/v1/devboxes/{id}", devboxes.retrieve, methods=["GET"]),
        Route("/v1/devboxes/{id}", devboxes.update, methods=["POST"]),
        Route("/v1/devboxes/{id}/wait_for_status", devboxes.wait_for_status, methods=["POST"]),
        Route("/v1/devboxes/{id}/shutdown", devboxes.shutdown, methods=["POST"]),
        Route("/v1/devboxes/{id}/suspend", devboxes.suspend, methods=["POST"]),
        Route("/v1/devboxes/{id}/resume", devboxes.resume, methods=["POST"]),
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
        body = await wire.parse(request, _CreateBody)
        return wire.reply(await self._fleet.create(_devbox_request(body), wire.request_key(request)))

    async def create_and_await_running(self, request: Request) -> Response:
        body = await wire.parse(request, _CreateBody)
        devbox = await self._fleet.create(_devbox_request(body), wire.request_key(request))
        ready = (DevboxStatus.RUNNING, DevboxStatus.FAILURE, DevboxStatus.SHUTDOWN)
        try:
            devbox = await while_connected(
                request, lambda: self._fleet.wait_for_status(devbox.id, ready, timeout=CREATE_HOLD_S)
            )
        except WaitExpired:
            devbox = await self._fleet.retrieve(devbox.id)
        return wire.reply(devbox)

    async def list(self, request: Request) -> Response:
        return wire.reply_page(
            "devboxes", await self._fleet.page(wire.list_query(request), wire.choice(request, "status"))
        )

    async def retrieve(self, request: Request) -> Response:
        return wire.reply(await self._fleet.retrieve(wire.path_id(request)))

    async def update(self, request: Request) -> Response:
        body = await wire.parse(request, _UpdateBody)
        return wire.reply(await self._fleet.update(wire.path_id(request), body.given()))

    async def wait_for_status(self, request: Request) -> Response:
        body = await wire.parse(request, _WaitStatusBody)
        hold = hold_time(body.timeout_seconds, default=DEFAULT_HOLD_S, limit=MAX_HOLD_S)
        identity = wire.path_id(request)
        return wire.reply(
            await while_connected(request, lambda: self._fleet.wait_for_status(identity, body.statuses, hold))
        )

    async def shutdown(self, request: Request) -> Response:
        is_forced = request.query_params.get("force") == "true"
        return wire.reply(await self._fleet.shutdown(wire.path_id(request), is_forced=is_forced))

    async def suspend(self, request: Request) -> Response:
        return wire.reply(await self._fleet.suspend(wire.path_id(request)))

    async def resume(self, request: Request) -> Response:
        return wire.reply(await self._fleet.resume(wire.path_id(request)))

    async def keep_alive(self, request: Request) -> Response:
        self._fleet.touch(wire.path_id(request))
        return wire.reply({})

    async def logs(self, request: Request) -> Response:
        query = request.query_params
        logs = await self._executions.logs(
            wire.path_id(request),
            execution_id=query.get("execution_id") or None,
            shell_name=query.get("shell_name") or None,
        )
        return wire.reply({"logs": [view(entry) for entry in logs]})


def _devbox_request(body: _CreateBody) -> requests.DevboxRequest:
    """Raises BadRequest for what this service does not do."""
    for key in (
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
    requests.check_variables("environment_variables", environment)
    requests.check_paths("file_mounts", body.file_mounts or ())
    return requests.DevboxRequest(
        name=body.name,
        metadata=body.metadata or {},
        environment_variables=environment,
        blueprint_id=body.blueprint_id,
        blueprint_name=body.blueprint_name,
        snapshot_id=body.snapshot_id,
        launch_parameters=body.launch_parameters or {},
        file_mounts={**(body.file_mounts or {}), **requests.mounted_files("mounts", body.mounts or ())},
        install=requests.mounted_install("mounts", body.mounts or ()),
    )


class _SnapshotBody(wire.Body):
    """To take or update a snapshot."""

    name: wire.Title | None = None
    commit_message: wire.Title | None = None
    metadata: wire.Metadata | None = None


class SnapshotRoutes:
    """To be placed before those of devboxes, whose `{id}` would swallow a word of these."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def routes(self) -> list[Route]:
        return [
            Route("/v1/devboxes/disk_snapshots", self.page, methods=["GET"]),
            Route("/v1/devboxes/disk_snapshots/{id}", self.update, methods=["POST"]),
            Route("/v1/devboxes/disk_snapshots/{id}/delete", self.delete, methods=["POST"]),
            Route("/v1/devboxes/disk_snapshots/{id}/status", self.status, methods=["GET"]),
            Route("/v1/devboxes/{id}/snapshot_disk", self.take_and_wait, methods=["POST"]),
            Route("/v1/devboxes/{id}/snapshot_disk_async", self.take, methods=["POST"]),
        ]

    async def take(self, request: Request) -> Response:
        return wire.reply(await self._begun(request))

    async def take_and_wait(self, request: Request) -> Response:
        begun = await self._begun(request)
        done = await while_connected(request, lambda: self._snapshots.wait(begun.id, SNAPSHOT_HOLD_S))
        return wire.reply(done)

    async def _begun(self, request: Request) -> SnapshotRecord:
        body = await wire.parse(request, _SnapshotBody)
        return await self._snapshots.take(wire.path_id(request), body.given(), wire.request_key(request))

    async def page(self, request: Request) -> Response:
        params = request.query_params
        for key in params:
            if key.startswith("metadata["):
                raise BadRequest(f"{key}: snapshots are not searched by metadata here.")
        filters = {"source_devbox_id": params.get("devbox_id") or None}
        filters |= {"source_blueprint_id": params.get("source_blueprint_id") or None}
        return wire.reply_page("snapshots", await self._snapshots.page(filters, wire.list_query(request)))

    async def update(self, request: Request) -> Response:
        body = await wire.parse(request, _SnapshotBody)
        return wire.reply(await self._snapshots.update(wire.path_id(request), body.given()))

    async def delete(self, request: Request) -> Response:
        await self._snapshots.delete(wire.path_id(request))
        return wire.reply({})

    async def status(self, request: Request) -> Response:
        found = await self._snapshots.retrieve(wire.path_id(request))
        shown: dict[str, Any] = {"status": found.status}
        if found.error:
            shown["error_message"] = found.error
        if found.status is SnapshotStatus.COMPLETE:
            shown["snapshot"] = view(found)
        return wire.reply(shown)


class _NetworkPolicyBody(wire.Body):
    """To create or update a network policy."""

    name: wire.Title | None = None
    description: str | None = None
    allow_all: bool | None = None
    allowed_hostnames: list[str] | None = None
    allowed_cidrs: list[Any] | None = None
    allow_agent_gateway: bool | None = None
    allow_devbox_to_devbox: bool | None = None
    allow_mcp_gateway: bool | None = None
    allow_runloop_mirrors: bool | None = None


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
        body = await wire.parse(request, _NetworkPolicyBody)
        return wire.reply(await self._policies.create(body.given(), wire.request_key(request)))

    async def page(self, request: Request) -> Response:
        params, query = request.query_params, wire.list_query(request)
        named = replace(query, search=params.get("name", "") or query.search)
        return wire.reply_page("network_policies", await self._policies.page({"id": params.get("id") or None}, named))

    async def retrieve(self, request: Request) -> Response:
        return wire.reply(await self._policies.retrieve(wire.path_id(request)))

    async def update(self, request: Request) -> Response:
        body = await wire.parse(request, _NetworkPolicyBody)
        return wire.reply(await self._policies.update(wire.path_id(request), body.given()))

    async def delete(self, request: Request) -> Response:
        return wire.reply(await self._policies.delete(wire.path_id(request)))
