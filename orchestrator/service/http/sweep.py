"""Routes of our own: who this service is, proof of it, signs of life, and asking it to end."""

import hashlib
import hmac
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator import __version__
from orchestrator.service.devboxes.states import TERMINAL, Status
from orchestrator.service.errors import BadRequest, Conflict
from orchestrator.service.http.activity import Activity
from orchestrator.service.http.bodies import ClientBody
from orchestrator.service.runs.states import ALIVE
from orchestrator.service.serialization import parse, reply
from orchestrator.service.store import DEVBOXES, SCENARIO_RUNS, Document, Store

MAX_NONCE: Final = 256
_LIVING: Final = tuple(status.value for status in Status if status not in TERMINAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the service tells about itself.

    `features` are what it does for clients beyond the published protocol, `notices` sentences for who starts a sweep.
    """

    instance: str
    isolation: str
    capabilities: tuple[str, ...]
    features: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def document(self) -> Document:
        return {
            "service": "sweep",
            "version": __version__,
            "instance": self.instance,
            "isolation": self.isolation,
            "capabilities": list(self.capabilities),
            "features": list(self.features),
            "notices": list(self.notices),
        }


class Sweep:
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
        return reply(self._facts.document())

    async def prove(self, request: Request) -> Response:
        nonce = request.query_params.get("nonce", "")
        if not 1 <= len(nonce) <= MAX_NONCE:
            raise BadRequest(f"nonce: expected 1 to {MAX_NONCE} characters.")
        return reply({"instance": self._facts.instance, "proof": proof(self._token, nonce)})

    async def beat(self, request: Request) -> Response:
        body = await parse(request, ClientBody)
        return reply({"at_work": self._activity.beat(body.client, body.sweep)})

    async def part(self, request: Request) -> Response:
        """A client goes without asking the service to end."""
        self._activity.forget((await parse(request, ClientBody)).client)
        return reply({})

    async def stop(self, request: Request) -> Response:
        """End the service, unless it is in use."""
        client = (await parse(request, ClientBody)).client
        self._asking += 1
        try:
            with self._activity.deciding():
                in_use = await self._in_use(client)
                self._activity.is_ending = not in_use
        finally:
            self._asking -= 1
        if in_use:
            raise Conflict(f"The service is in use: {in_use}. It ends by itself when nobody needs it.")
        self._stop()
        return reply({})

    async def _in_use(self, client: str) -> str:
        """What is in flight, in words; nothing if nothing is."""
        devboxes, runs = await self._store.read(_count_living)
        counts = {
            "devboxes alive": devboxes,
            "scenario runs alive": runs,
            "other clients": self._activity.others(client),
            "other requests": self._activity.requests - self._asking,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def proof(token: str, nonce: str) -> str:
    """HMAC-SHA256 of the nonce with the token as key, in hexadecimal: what only a holder of the token can say."""
    return hmac.new(token.encode(), nonce.encode(), hashlib.sha256).hexdigest()


def _count_living(db: sqlite3.Connection) -> tuple[int, int]:
    return DEVBOXES.count(db, {"status": _LIVING}), SCENARIO_RUNS.count(db, {"state": tuple(ALIVE)})
