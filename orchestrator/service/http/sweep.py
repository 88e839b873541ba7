"""Routes about the service: its identity and proof of it, signs of life, its end, and the secrets that it keeps.

Most are beyond the published protocol, as are those about the agent of a scenario run: it begins, and it has ended.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator import __version__
from orchestrator.common.address import proof
from orchestrator.core.protocol import DEVBOX_ALIVE
from orchestrator.service.devboxes.executions import Executions
from orchestrator.service.environments.environments import Environments
from orchestrator.service.environments.preparations import Preparations
from orchestrator.service.errors import BadRequest, Conflict
from orchestrator.service.http import serialization as wire
from orchestrator.service.http.app import Activity
from orchestrator.service.records import ExecutionStatus, Record
from orchestrator.service.runs.settlements import DECLARED, Settlements
from orchestrator.service.runs.states import AT_WORK
from orchestrator.service.store import DEVBOXES, SCENARIO_RUNS, Page, Store, now_ms

MAX_NONCE: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The service's words about itself.

    `features` are what it does for clients beyond the published protocol, `notices` sentences for who starts a sweep,
    and `internet_notices` for who starts one with scenarios that ask for the internet.
    """

    instance: str
    isolation: str
    capabilities: tuple[str, ...]
    features: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    internet_notices: tuple[str, ...] = ()


class _ClientBody(wire.Body):
    """A client of ours: an id that it chose for itself, and the sweep that it is at work on, if any."""

    client: str = Field(default="", max_length=200)
    sweep: str = Field(default="", max_length=200)


class SweepRoutes:
    """`stop` is called, in the event loop, when a client asked the service to end and nothing forbids it."""

    def __init__(self, *, facts: Facts, token: str, activity: Activity, store: Store, stop: Callable[[], None]) -> None:
        self._facts = facts
        self._token = token
        self._activity = activity
        self._store = store
        self._stop = stop
        #: Requests to end, which are no use of the service: of those that come at once each would refuse the other.
        self._asking = 0

    def routes(self) -> list[Route]:
        return [
            Route("/v1/sweep", self.describe, methods=["GET"]),
            Route("/v1/sweep/proof", self.prove, methods=["GET"]),
            Route("/v1/sweep/heartbeat", self.beat, methods=["POST"]),
            Route("/v1/sweep/goodbye", self.part, methods=["POST"]),
            Route("/v1/sweep/stop", self.stop, methods=["POST"]),
        ]

    async def describe(self, _request: Request) -> Response:
        return wire.reply({"service": "sweep", "version": __version__, **asdict(self._facts)})

    async def prove(self, request: Request) -> Response:
        nonce = request.query_params.get("nonce", "")
        if not 1 <= len(nonce) <= MAX_NONCE:
            raise BadRequest(f"nonce: expected 1 to {MAX_NONCE} characters.")
        return wire.reply({"instance": self._facts.instance, "proof": proof(self._token, nonce)})

    async def beat(self, request: Request) -> Response:
        body = await wire.parse(request, _ClientBody)
        return wire.reply({"at_work": self._activity.beat(body.client, body.sweep)})

    async def part(self, request: Request) -> Response:
        """A client goes without asking the service to end."""
        self._activity.forget((await wire.parse(request, _ClientBody)).client)
        return wire.reply({})

    async def stop(self, request: Request) -> Response:
        """End the service, unless it is in use."""
        client = (await wire.parse(request, _ClientBody)).client

        def count(db: sqlite3.Connection) -> tuple[int, int]:
            return DEVBOXES.count(db, {"status": DEVBOX_ALIVE}), SCENARIO_RUNS.count(db, {"state": tuple(AT_WORK)})

        self._asking += 1
        try:
            with self._activity.deciding():
                devboxes, runs = await self._store.read(count)
                counts = {
                    "devboxes alive": devboxes,
                    "scenario runs alive": runs,
                    "other clients": self._activity.others(client),
                    "other requests": self._activity.requests - self._asking,
                }
                in_use = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
                self._activity.is_ending = not in_use
        finally:
            self._asking -= 1
        if in_use:
            raise Conflict(f"The service is in use: {in_use}. It ends by itself when nobody needs it.")
        self._stop()
        return wire.reply({})


class _EndBody(wire.Body):
    scoring: str = DECLARED
    #: The execution that the agent was; it must have ended.
    execution: str | None = None
    devbox: str | None = None
    #: A folder of the devbox with what crossed to an earlier scoring.
    kept: str | None = None


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
        await self._settlements.begin(wire.path_id(request))
        return wire.reply({})

    async def end(self, request: Request) -> Response:
        """Settle a run; answer with the exit status of the execution that is named, if one is. 409 while that runs."""
        body, status = await wire.parse(request, _EndBody), None
        if body.execution is not None and body.devbox is not None:
            shown = await self._executions.view(body.devbox, body.execution, lines=0)
            if shown.status is not ExecutionStatus.COMPLETED:
                raise Conflict(f"Execution {body.execution} goes on: the agent has not ended.")
            status = shown.exit_status
        ended = await self._settlements.end(wire.path_id(request), body.scoring, exit_status=status, kept=body.kept)
        return wire.reply(ended)


class _EnvironmentsBody(wire.Body):
    blueprint_ids: list[str] = Field(max_length=10_000)
    is_begun: bool = False


class PreparationRoutes:
    """Environments before devboxes need them: prepared, and the room that their images take."""

    def __init__(self, preparations: Preparations, environments: Environments) -> None:
        self._preparations = preparations
        self._environments = environments

    def routes(self) -> list[Route]:
        return [
            Route("/v1/sweep/prepare", self.prepare, methods=["POST"]),
            Route("/v1/sweep/room", self.room, methods=["POST"]),
        ]

    async def prepare(self, request: Request) -> Response:
        """Begin to prepare environments, unless that `is_begun`; answer how far they are."""
        body = await wire.parse(request, _EnvironmentsBody)
        if not body.is_begun:
            self._preparations.begin(body.blueprint_ids)
        shown = [
            {
                "blueprint_id": each.blueprint_id,
                "state": each.state,
                "message": each.message,
                "seconds": each.seconds,
            }
            for each in self._preparations.of(body.blueprint_ids)
        ]
        return wire.reply({"preparations": shown})

    async def room(self, request: Request) -> Response:
        body = await wire.parse(request, _EnvironmentsBody)
        return wire.reply(asdict(await self._environments.room_for(body.blueprint_ids)))


class _SecretView(Record, frozen=True, kw_only=True):
    id: str
    name: str
    create_time_ms: int
    update_time_ms: int


class SecretRoutes:
    """Secrets by name: variables of the service's own environment that its owner gave out.

    These are what a run profile may name; of the rest of its environment the service gives away neither value nor name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        since = now_ms()
        self._items = [
            _SecretView(
                id=f"sec_{hashlib.sha256(name.encode()).hexdigest()[:20]}",
                name=name,
                create_time_ms=since,
                update_time_ms=since,
            )
            for name in sorted(set(names))
        ]

    def routes(self) -> list[Route]:
        return [Route("/v1/secrets", self.page, methods=["GET"])]

    async def page(self, request: Request) -> Response:
        limit = wire.list_query(request).limit
        return wire.reply_page("secrets", Page(self._items[:limit], len(self._items) > limit, len(self._items)))
