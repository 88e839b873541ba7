"""Routes of network policies."""

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.service.devboxes.network_policies import NetworkPolicies
from orchestrator.service.http.bodies import NetworkPolicyBody
from orchestrator.service.serialization import list_query, parse, reply, reply_page, request_key


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
        named = replace(query, search=params["name"]) if params.get("name") else query
        return reply_page("network_policies", await self._policies.page({"id": params.get("id") or None}, named))

    async def retrieve(self, request: Request) -> Response:
        return reply(await self._policies.retrieve(request.path_params["id"]))

    async def update(self, request: Request) -> Response:
        body = await parse(request, NetworkPolicyBody)
        return reply(await self._policies.update(request.path_params["id"], body.given()))

    async def delete(self, request: Request) -> Response:
        return reply(await self._policies.delete(request.path_params["id"]))
