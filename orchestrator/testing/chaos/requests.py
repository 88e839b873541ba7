"""Faults of requests: a layer inside the one that knows the token, and the connections that it can close.

A rule strikes by chance; a request may also ask for a fault itself, with the header `x-sweep-chaos: NAME` or
`NAME=NUMBER`, such as `drop` or `late=2.5`. Exempt are the routes below /v1/sweep, so that a service which misbehaves
can still be found, kept and stopped; and from the rules `shutdown` of a devbox, so that nothing makes it immortal.
"""

from collections.abc import Mapping, Sequence
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
from orchestrator.service.store import Document
from orchestrator.testing.chaos.dice import Dice, faults_of, say_injected
from orchestrator.testing.chaos.rules import FAULTS, Rule, Seam
from orchestrator.testing.rewrite_reply import edited

HEADER: Final = "x-sweep-chaos"
SHUTDOWN: Final = "/v1/devboxes/{id}/shutdown"
_OWN: Final = "/v1/sweep"
_OF_REQUESTS: Final = faults_of(Seam.REQUEST)
_OF_EXECUTIONS: Final = frozenset({"vanish"})
_OF_LISTS: Final = frozenset({"list-repeats", "list-skips"})
_CONNECTION: Final = "sweep.connection"
#: Ends of pages that are remembered, for those who ask for the next.
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

    async def suffer(self, rule: Rule) -> None:
        number = rule.number or 0.0
        match rule.fault:
            case "hang":
                await self._hang(number)
            case "late":
                await self._late(number)
            case "drop":
                await self._drop()
            case "drop-mid-body":
                await self._drop_mid_body()
            case status:
                headers = {} if rule.number is None else {"retry-after": f"{number:g}"}
                await self.answer(failure(int(status), "This is chaos: the service was told to say so.", headers))

    async def answer(self, response: Response) -> None:
        await response(self.scope, self.receive, self.send)

    async def _hang(self, seconds: float) -> None:
        async def end_with_client() -> None:
            await self._gone()
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end_with_client)
            await self._pause(seconds)
            tasks.cancel_scope.cancel()
        await self._close()

    async def _late(self, seconds: float) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._pause(seconds)
            await self.send(message)

        await self.app(self.scope, self.receive, send)

    async def _drop(self) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._close()

        await self.app(self.scope, self.receive, send)

    async def _drop_mid_body(self) -> None:
        is_closed = False

        async def send(message: Message) -> None:
            nonlocal is_closed
            if is_closed:
                return
            body = message.get("body", b"")
            if message["type"] == "http.response.start" or (not body and message.get("more_body")):
                await self.send(message)
            else:
                is_closed = True
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
    """`routes` are the service's: they say what kind of request one is."""

    def __init__(self, app: ASGIApp, *, dice: Dice, routes: Sequence[Route], stopping: anyio.Event) -> None:
        self._app = app
        self._dice = dice
        self._stopping = stopping
        self._routes = routes
        self._vanished: set[str] = set()
        self._pages = _Pages()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = next((found for route in self._routes if (found := _match(route, scope))), None)
        if found is None or found[0].path.startswith(_OWN):
            await self._app(scope, receive, send)
            return
        route, parameters = found
        victim = _Victim(self._app, self._stopping, scope, receive, send)
        execution = parameters.get("execution_id")
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

    def _struck(self, scope: Scope, route: Route, execution: str | None) -> Rule | None:
        """The fault that this request asks for, else the one that the rules have for it."""
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
        rule = _parse(asked)
        if rule.fault not in possible:
            return None
        say_injected(rule.fault, route=kind, path=scope["path"], asked=asked)
        return rule


class _Pages:
    """Lists as they are read while items come and go; ends of pages are remembered for whoever asks for the next."""

    def __init__(self) -> None:
        self._ends: dict[str, Document] = {}

    async def answer(self, victim: _Victim, fault: str | None) -> None:
        after = _cursor(victim.scope)
        await edited(victim.app, victim.scope, victim.receive, victim.send, lambda body: self._turn(body, after, fault))

    def _turn(self, body: Any, after: str | None, fault: str | None) -> Any:
        key = next((key for key, value in body.items() if isinstance(value, list)), None)
        if key is None or "has_more" not in body:
            return body
        items = body[key]
        if fault == "list-repeats" and after in self._ends:
            items = [self._ends[after], *items]
        if fault == "list-skips" and len(items) > 1:
            items = items[1:]
        if body["has_more"] and items:
            self._remember(items[-1])
        return {**body, key: items}

    def _remember(self, item: Document) -> None:
        while len(self._ends) >= _MAX_ENDS:
            del self._ends[next(iter(self._ends))]
        self._ends[item["id"]] = item


def _match(route: Route, scope: Scope) -> tuple[Route, Mapping[str, str]] | None:
    match, found = route.matches(scope)
    return (route, found["path_params"]) if match is Match.FULL else None


def _cursor(scope: Scope) -> str | None:
    """The id behind which a list is asked to go on."""
    return QueryParams(scope["query_string"]).get("starting_after") or None


def _parse(asked: str) -> Rule:
    """Raises BadRequest for what names no fault of requests."""
    name, _, text = asked.strip().partition("=")
    if name not in _OF_REQUESTS:
        raise BadRequest(f"{HEADER}: unknown fault {name!r}; known: {', '.join(sorted(_OF_REQUESTS))}.")
    takes = FAULTS[name].takes
    if not text:
        return Rule.model_validate({"fault": name})
    if takes is None:
        raise BadRequest(f"{HEADER}: {name} takes no number, got {text!r}.")
    try:
        return Rule.model_validate({"fault": name, takes: float(text)})
    except ValueError:
        raise BadRequest(f"{HEADER}: {name} takes {takes}, a number of at least 0, got {text!r}.") from None
