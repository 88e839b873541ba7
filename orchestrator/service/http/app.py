"""The ASGI application: who may ask, which route answers, and what a failure looks like on the wire.

Every reply that is not a result is `{"message", "code"}`, from a wrong token to a mistake of ours. The two layers are
plain ASGI: the framework's own base class for them would cancel a handler whose client has gone.
"""

import hmac
from collections.abc import Sequence
from typing import Final

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
from orchestrator.service.http.activity import Activity
from orchestrator.service.http.connection import ClientGone

IDENTITY: Final = (
    "This is sweep's Runloop-compatible benchmark service; it serves benchmarks, benchmark runs, scenarios, "
    "scenario runs, scorers, devboxes and executions."
)
#: Answered without a token, so that a client can tell whose address it holds before it sends one.
OPEN_PATHS: Final = frozenset({"/v1/sweep/proof"})
#: Asking these is not using the service.
IDLE_PATHS: Final = OPEN_PATHS | {"/v1/sweep"}
#: The extension of a scope whose `call` tells the connection that it has shown the token.
KNOWN: Final = "sweep.known"
_RETRY_AFTER: Final = "5"
#: Characters of a failure's message: some repeat what was sent, which may be all that a body can hold.
MAX_MESSAGE: Final = 4000


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
    """Lets in who has the token, notes that somebody is there, and turns everybody away once the service ends."""

    def __init__(self, app: ASGIApp, *, token: str, activity: Activity) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._activity = activity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._activity.wait_decided()
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await refusal(scope, receive, send)
        elif scope["path"] in IDLE_PATHS:
            await self._app(scope, receive, send)
        else:
            with self._activity.request():
                await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        given = Headers(scope=scope).get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, self._expected):
            return failure(401, "A bearer token of this service is needed.", {"www-authenticate": "Bearer"})
        if connection := scope.get("extensions", {}).get(KNOWN):
            connection["call"]()
        if self._activity.is_ending:
            return failure(503, "The service is ending.", {"retry-after": _RETRY_AFTER})
        return None
