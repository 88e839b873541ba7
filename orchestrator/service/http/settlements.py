"""Routes of our own about the agent of a scenario run: it begins, and it has ended."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.service.devboxes.executions import COMPLETED, Executions
from orchestrator.service.errors import Conflict
from orchestrator.service.runs.settlements import DECLARED, Settlements
from orchestrator.service.serialization import Body, parse, reply


class _EndBody(Body):
    scoring: str = DECLARED
    #: The execution that the agent was; it must have ended.
    execution: str | None = None
    devbox: str | None = None


class SettlementRoutes:
    def __init__(self, settlements: Settlements, executions: Executions) -> None:
        self._settlements = settlements
        self._executions = executions

    def routes(self) -> list[Route]:
        return [
            Route("/v1/sweep/runs/{id}/agent_begins", self.begin, methods=["POST"]),
            Route("/v1/sweep/runs/{id}/agent_ended", self.end, methods=["POST"]),
        ]

    async def begin(self, request: Request) -> Response:
        await self._settlements.mark(request.path_params["id"])
        return reply({})

    async def end(self, request: Request) -> Response:
        """With an execution that is named, the answer has its exit status. 409 while that goes on."""
        body, status = await parse(request, _EndBody), None
        if body.execution is not None and body.devbox is not None:
            shown = await self._executions.view(body.devbox, body.execution, lines=0)
            if shown["status"] != COMPLETED:
                raise Conflict(f"Execution {body.execution} goes on: the agent has not ended.")
            status = shown.get("exit_status")
        return reply({**await self._settlements.end(request.path_params["id"], body.scoring), "exit_status": status})
