"""A door to one devbox for a program on this machine: the endpoint's own routes, under a key for one attempt.

Our key opens every devbox, so an agent never gets it. It gets the address of a small server of ours and a key that this
server made up: what is asked there of that one devbox is asked of the endpoint with our key, everything else is
refused. So it works with every endpoint, and with any client of the protocol in any language.

What is let through is a list, matched against the bytes of the path as they came: nothing in it is decoded, so nothing
can mean another devbox to whoever decodes it later. A devbox's life and labels are not on the list, they are ours.
Each attempt has a server of its own: when it is gone, so is the key, and no table of keys can be wrong.
"""

import hmac
import logging
import re
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import httpx
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

_ACTS: Final = (
    "execute|execute_async|execute_sync|wait_for_status|keep_alive"
    "|read_file_contents|write_file_contents|upload_file|download_file"
)
_EXECUTION: Final = "executions/[A-Za-z0-9_-]+"
_ALLOWED: Final = {
    "GET": f"(/(logs|{_EXECUTION}(/stream_std(out|err)_updates)?))?",
    "POST": f"/({_ACTS}|{_EXECUTION}/(wait_for_status|kill|send_std_in))",
}
_QUERY: Final = frozenset({"last_n", "offset", "execution_id", "shell_name"})
_ASKED: Final = ("accept", "accept-encoding", "content-type", "content-length", "content-encoding", "x-request-id")
_ANSWERED: Final = (
    "content-type",
    "content-length",
    "content-encoding",
    "content-disposition",
    "cache-control",
    "retry-after",
)
#: Seconds until the endpoint takes a connection; how long it then takes to answer is between it and the agent.
_CONNECT: Final = 10.0
#: What the address of an endpoint and our key to it are at this moment.
Upstream = Callable[[], tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where a devbox can be reached, and the key for it."""

    url: str
    token: str


@asynccontextmanager
async def open_relay(upstream: Upstream, devbox_id: str) -> AsyncIterator[Access]:
    """Serve one devbox on loopback until the context is left; what is still under way then is cut off."""
    token = f"devbox_{secrets.token_urlsafe(32)}"
    timeout = httpx.Timeout(None, connect=_CONNECT)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
    async with httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False) as http:
        door = _Door(upstream=upstream, devbox_id=devbox_id, token=token, http=http)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with _serving(door, listener):
                yield Access(url=f"http://127.0.0.1:{listener.getsockname()[1]}", token=token)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the sweep's."""
        yield


@asynccontextmanager
async def _serving(door: "_Door", listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        door, log_config=None, log_level=logging.CRITICAL, lifespan="off", ws="none", timeout_graceful_shutdown=0
    )
    server = _Server(config)

    async def serve() -> None:
        with anyio.CancelScope(shield=True):  # it ends by being told, in a fifth of a second
            await server.serve([listener])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        try:
            yield
        finally:
            server.should_exit = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Door:
    """The application: looks at each request, and passes it on or not."""

    upstream: Upstream
    devbox_id: str
    token: str
    http: httpx.AsyncClient

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        response = self._refusal(request) or await self._pass_on(request)
        await response(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        """What is answered to a request that is not passed on."""
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            return _no(401, "this key is not that of a running attempt")
        path = _raw_path(request)
        pattern = f"/v1/devboxes/{re.escape(self.devbox_id)}{_ALLOWED.get(request.method, '$^')}"
        if re.fullmatch(pattern, path) is None:
            return _no(403, f"{request.method} {path}: this key is for working in devbox {self.devbox_id} only")
        unknown = sorted(set(request.query_params) - _QUERY)
        return _no(400, f"unknown query parameters: {', '.join(unknown)}") if unknown else None

    async def _pass_on(self, request: Request) -> Response:
        url, key = self.upstream()
        headers = {name: request.headers[name] for name in _ASKED if name in request.headers}
        has_body = "content-length" in headers or "transfer-encoding" in request.headers
        asked = self.http.build_request(
            request.method,
            url.rstrip("/") + _raw_path(request),
            params=list(request.query_params.multi_items()),
            headers={**headers, "authorization": f"Bearer {key}"},
            content=request.stream() if has_body else None,
        )
        try:
            answer = await self.http.send(asked, stream=True)
        except ClientDisconnect:
            return _no(400, "the request broke off")
        except httpx.HTTPError as error:
            return _no(502, f"the endpoint cannot be reached: {type(error).__name__}")
        return _Passed(answer)


class _Passed(StreamingResponse):
    """The endpoint's answer on its way to the agent; the connection behind it ends with it, however that ends."""

    def __init__(self, answer: httpx.Response) -> None:
        headers = {name: answer.headers[name] for name in _ANSWERED if name in answer.headers}
        super().__init__(answer.aiter_raw(), status_code=answer.status_code, headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except (ClientDisconnect, httpx.HTTPError):
            pass  # one of the two ends is gone, and the other sees the connection close
        finally:
            with anyio.CancelScope(shield=True):
                await self._answer.aclose()


def _raw_path(request: Request) -> str:
    """The path as it came, not decoded; an unusual byte in it matches nothing."""
    path: bytes = request.scope.get("raw_path") or b""
    return path.decode("latin-1")


def _no(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status_code=status)
