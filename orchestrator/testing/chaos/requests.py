"""Faults of requests: a layer inside the one that checks the token, and the connections that it can close.

A rule strikes by chance; a request may also ask for a fault itself, with the header `x-sweep-chaos: NAME` or
`NAME=NUMBER`, such as `drop` or `late=2.5`. Exempt are the routes below /v1/sweep, so that a service which misbehaves
can still be found, kept and stopped; and from the rules `shutdown` of a devbox, so that nothing makes it immortal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.service.errors import BadRequest
from orchestrator.service.http.app import failure
from orchestrator.service.http.gate import BoundedHeads
from orchestrator.testing.chaos.rules import FAULTS, Dice, FaultRule, Seam, faults_of, log_injected
from orchestrator.testing.strict_compat import edited

HEADER: Final = "x-sweep-chaos"
SHUTDOWN: Final = "/v1/devboxes/{id}/shutdown"
_OWN: Final = "/v1/sweep"
_OF_REQUESTS: Final = faults_of(Seam.REQUEST)
_OF_EXECUTIONS: Final = frozenset({"vanish"})
_OF_LISTS: Final = frozenset({"list-repeats", "list-skips"})
_CONNECTION: Final = "sweep.connection"
#: Last items of pages that are kept, for requests of the next page.
_MAX_ENDS: Final = 1000


class Droppable(BoundedHeads):
    """Connections that a layer can close under the server."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] |= {_CONNECTION: {"close": self.transport.close}}


@dataclass(frozen=True, slots=True)
class _Victim:
    """A request to which a fault happens; none is held up once the service is `stopping`."""

    app: ASGIApp
    stopping: anyio.Event
    scope: Scope
    receive: Receive
    send: Send

    async def suffer(self, rule: FaultRule) -> None:
        number = rule.number or 0.0
        match rule.fault:
            case "hang":
                async with anyio.create_task_group() as tasks:

                    async def end_with_client() -> None:
                        await self._gone()
                        tasks.cancel_scope.cancel()

                    tasks.start_soon(end_with_client)
                    await self._pause(number)
                    tasks.cancel_scope.cancel()
                await self._close()
            case "late" | "drop" | "drop-mid-body":
                await self._relay(rule.fault, number)
            case status:
                headers = {} if rule.number is None else {"retry-after": f"{number:g}"}
                await self.answer(failure(int(status), "This is chaos: the service was told to say so.", headers))

    async def answer(self, response: Response) -> None:
        await response(self.scope, self.receive, self.send)

    async def _relay(self, fault: str, seconds: float) -> None:
        """Let the request have its effect, and harm its answer."""
        is_closed = False

        async def send(message: Message) -> None:
            nonlocal is_closed
            is_start, body = message["type"] == "http.response.start", message.get("body", b"")
            if is_closed:
                return
            if is_start and fault == "late":
                await self._pause(seconds)
            if fault == "late" or (fault == "drop-mid-body" and (is_start or (not body and message.get("more_body")))):
                await self.send(message)
                return
            is_closed = True
            if fault == "drop-mid-body":
                await self.send({**message, "body": body[: len(body) // 2], "more_body": True})
            await self._close()

        await self.app(self.scope, self.receive, send)

    async def _pause(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self.stopping.wait()

    async def _close(self) -> None:
        """Close the connection behind what was sent, and return when the server has noticed."""
        self.scope["extensions"][_CONNECTION]["close"]()
        await self._gone()

    async def _gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


class RequestFaults:
    """The layer; the service's `routes` tell the kinds of requests apart."""

    def __init__(self, app: ASGIApp, *, dice: Dice, routes: Sequence[Route], stopping: anyio.Event) -> None:
        self._app = app
        self._dice = dice
        self._stopping = stopping
        self._routes = routes
        self._vanished: set[str] = set()
        self._pages = _Pages()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        matches = ((route, *route.matches(scope)) for route in self._routes)
        route, found = next(((route, found) for route, match, found in matches if match is Match.FULL), (None, {}))
        if route is None or route.path.startswith(_OWN):
            await self._app(scope, receive, send)
            return
        victim = _Victim(self._app, self._stopping, scope, receive, send)
        execution = found["path_params"].get("execution_id")
        try:
            rule = self._struck(scope, route, execution)
        except BadRequest as error:
            await victim.answer(failure(400, error.message))
            return
        if execution is not None and rule is not None and rule.fault == "vanish":
            self._vanished.add(execution)
        if execution in self._vanished:
            await victim.answer(failure(404, f"There is no execution with id {execution!r}."))
        elif rule is not None and rule.fault not in _OF_LISTS:
            await victim.suffer(rule)
        elif scope["method"] == "GET":
            await self._pages.answer(victim, None if rule is None else rule.fault)
        else:
            await self._app(scope, receive, send)

    def _struck(self, scope: Scope, route: Route, execution: str | None) -> FaultRule | None:
        """Return the fault that this request asks for, else the one that the rules give it. Raises BadRequest."""
        kind = f"{scope['method']} {route.path}"
        possible = _OF_REQUESTS
        if execution is None or execution in self._vanished:
            possible -= _OF_EXECUTIONS
        if _cursor(scope) is None:
            possible -= _OF_LISTS
        asked = Headers(scope=scope).get(HEADER)
        if asked is None:
            possible = frozenset() if route.path == SHUTDOWN else possible
            request = f"{scope['method']} {scope['path']}"
            return self._dice.throw(kind, possible, request=request, route=kind, path=scope["path"])
        name, _, text = asked.strip().partition("=")
        if name not in _OF_REQUESTS:
            raise BadRequest(f"{HEADER}: unknown fault {name!r}; known: {', '.join(sorted(_OF_REQUESTS))}.")
        takes = FAULTS[name].takes
        if text and takes is None:
            raise BadRequest(f"{HEADER}: {name} takes no number, got {text!r}.")
        try:
            rule = FaultRule.model_validate({"fault": name, **({takes: float(text)} if text else {})})
        except ValueError:
            raise BadRequest(f"{HEADER}: {name} takes {takes}, a number of at least 0, got {text!r}.") from None
        if name not in possible:
            return None
        log_injected(name, route=kind, path=scope["path"], asked=asked)
        return rule


class _Pages:
    """Lists as they are read while items come and go; the last items of pages are kept for requests of the next."""

    def __init__(self) -> None:
        self._ends: dict[str, dict[str, Any]] = {}

    async def answer(self, victim: _Victim, fault: str | None) -> None:
        after = _cursor(victim.scope)

        def turn(body: Any) -> Any:
            key = next((key for key, value in body.items() if isinstance(value, list)), None)
            if key is None or "has_more" not in body:
                return body
            items = body[key]
            if fault == "list-repeats" and after in self._ends:
                items = [self._ends[after], *items]
            if fault == "list-skips" and len(items) > 1:
                items = items[1:]
            if body["has_more"] and items:
                while len(self._ends) >= _MAX_ENDS:
                    del self._ends[next(iter(self._ends))]
                self._ends[items[-1]["id"]] = items[-1]
            return {**body, key: items}

        await edited(victim.app, victim.scope, victim.receive, victim.send, turn)


def _cursor(scope: Scope) -> str | None:
    """Return the id after which a request continues a list."""
    return QueryParams(scope["query_string"]).get("starting_after") or None
