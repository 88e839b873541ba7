"""The ASGI application: who may ask, whether anybody still does, and what a failure looks like on the wire.

Every reply that is not a result is `{"message", "code"}`, from a wrong token to a mistake of ours. The two layers are
plain ASGI: the framework's own base class for them would cancel a handler whose client has gone.
"""

import hmac
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import anyio
import orjson
import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.service.errors import Away, ServiceError, Unwritable, WaitExpired

T = TypeVar("T")

IDENTITY: Final = (
    "This is sweep's Runloop-compatible benchmark service; it serves benchmarks, benchmark runs, scenarios, "
    "scenario runs, scorers, blueprints, objects, devboxes and executions."
)
#: Answered without a token, so that a client can tell whose address it holds before it sends one.
OPEN_PATHS: Final = frozenset({"/v1/sweep/proof"})
#: The addresses of contents have keys of their own: the published client sends no token there.
_KEYED_PATHS: Final = re.compile(r"/v1/objects/[^/]+/content")
#: Asking these is not using the service.
IDLE_PATHS: Final = OPEN_PATHS | {"/v1/sweep"}
#: The extension of a scope whose `call` tells the connection that it has shown the token.
KNOWN: Final = "sweep.known"
_RETRY_AFTER: Final = "5"
#: Characters of a failure's message: some repeat what was sent, which may be all that a body can hold.
MAX_MESSAGE: Final = 4000
#: Time after which a client that sends no heartbeat is taken for gone.
HEARTBEAT_S: Final = 20.0


class Activity:
    """Use of the service: requests in flight, the last one, and the clients that send heartbeats.

    `is_ending`, once set, turns new requests away; while it is being decided, they wait.
    """

    def __init__(self) -> None:
        self.is_ending = False
        self._deciding: anyio.Event | None = None
        self.requests = 0
        self._last = anyio.current_time()
        #: When each client was there last, and the sweep that it is at work on.
        self._clients: dict[str, tuple[float, str]] = {}

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Decide inside whether the service may end: meanwhile new requests wait, so what is counted stays true."""
        decided = self._deciding = anyio.Event()
        try:
            yield
        finally:
            self._deciding = None
            decided.set()

    async def wait_decided(self) -> None:
        """Wait while it is being decided whether the service ends."""
        while self._deciding is not None:
            await self._deciding.wait()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while it is answered."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1
            self._last = anyio.current_time()

    def beat(self, client: str, sweep: str = "") -> list[str]:
        """Note that a client is there; return the other clients that are at work on the same sweep."""
        self._forget_silent()
        self._clients[client] = (anyio.current_time(), sweep)
        return [name for name, (_, its) in self._clients.items() if sweep and its == sweep and name != client]

    def others(self, client: str) -> int:
        """Count the other clients that have been there lately."""
        self._forget_silent()
        return len(self._clients.keys() - {client})

    def _forget_silent(self) -> None:
        since = anyio.current_time() - HEARTBEAT_S
        self._clients = {name: (at, sweep) for name, (at, sweep) in self._clients.items() if at > since}

    def forget(self, client: str) -> None:
        """Note that a client goes."""
        self._clients.pop(client, None)

    async def wait_unused(self, seconds: float) -> None:
        """Wait until there has been no request for so long."""
        left = seconds
        while left > 0:
            await anyio.sleep(left)
            left = seconds if self.requests else self._last + seconds - anyio.current_time()


def is_person(scope: Scope) -> bool:
    """Tell if somebody has opened the service's own address in a browser: clients of the protocol ask for no HTML."""
    is_root = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/"
    return is_root and "text/html" in Headers(scope=scope).get("accept", "")


class ClientGone(Exception):
    """The client closed the connection and will not read the answer."""


async def while_connected(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """Do `work`, whose exceptions pass as they are, unless the client goes. Raises ClientGone.

    The body of the request must have been read. The server does not cancel a handler whose client went away: hundreds
    of clients that give up and ask again would leave hundreds of handlers waiting in vain.
    """
    outcome: list[T] = []
    failed: list[Exception] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            outcome.append(await work())
        except Exception as error:  # noqa: BLE001 - carried through the task group as it is
            failed.append(error)
        tasks.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if not outcome:
        raise ClientGone
    return outcome[0]


def hold_time(asked: float | None, *, default: float, limit: float) -> float:
    """Return the seconds to hold a request that waits: those `asked` for, from 0 to `limit`."""
    return default if asked is None else min(max(asked, 0.0), limit)


def application(
    *, routes: Sequence[BaseRoute], token: str, activity: Activity, layers: Sequence[Middleware] = ()
) -> Starlette:
    """The service's application; routes are tried in order. `layers` see the requests of those who have the token."""
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(_Failures),
            Middleware(_Doorkeeper, token=token, activity=activity),
            *layers,
        ],
        exception_handlers={
            ServiceError: _service_error,
            HTTPException: _http_error,
        },
    )
    app.router.redirect_slashes = False
    return app


def failure(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """The body of every reply that is not a result; of a message that is too long, its beginning."""
    said = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]} …"
    text = said.encode(errors="backslashreplace").decode()  # a path in it may be no UTF-8
    return Response(orjson.dumps({"message": text, "code": status}), status, headers, "application/json")


async def _service_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    headers = {}
    if isinstance(error, Unwritable | Away):
        headers["retry-after"] = _RETRY_AFTER
    if isinstance(error, WaitExpired):
        # The published client would sleep up to 16 s before it asked again; its own loop asks at once.
        headers["x-should-retry"] = "false"
    return failure(error.status, error.message, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path}"
    what = {
        404: f"There is no route {asked}. {IDENTITY}",
        405: f"{asked} is not served here. {IDENTITY}",
    }.get(error.status_code, str(error.detail))
    return failure(error.status_code, what, dict(error.headers or {}))


class _Failures:
    """Answers 500 for a mistake of ours, and keeps its traceback in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_started = False

        async def watch(message: Message) -> None:
            nonlocal is_started
            is_started = is_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except (ClientDisconnect, ClientGone):
            return
        except Exception as error:
            structlog.get_logger().exception("request.crashed", method=scope.get("method"), path=scope.get("path"))
            if is_started:
                raise
            answer = failure(500, f"The service made a mistake; its log says where: {type(error).__name__}: {error}")
            await answer(scope, receive, send)


class _Doorkeeper:
    """Lets in requests with the token, counts them as use of the service, and refuses all once the service ends."""

    def __init__(self, app: ASGIApp, *, token: str, activity: Activity) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._activity = activity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._activity.wait_decided()
        path = scope.get("path", "")
        if scope["type"] != "http" or path in OPEN_PATHS or _KEYED_PATHS.fullmatch(path) or is_person(scope):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, self._expected):
            refusal = failure(401, "A bearer token of this service is needed.", {"www-authenticate": "Bearer"})
            await refusal(scope, receive, send)
            return
        if connection := scope.get("extensions", {}).get(KNOWN):
            connection["call"]()
        if self._activity.is_ending:
            await failure(503, "The service is ending.", {"retry-after": _RETRY_AFTER})(scope, receive, send)
        elif path in IDLE_PATHS:
            await self._app(scope, receive, send)
        else:
            with self._activity.request():
                await self._app(scope, receive, send)
