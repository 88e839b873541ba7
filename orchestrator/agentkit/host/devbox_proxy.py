"""A reverse proxy to one devbox for a program on this machine: the endpoint's own routes, under a key for one attempt.

Our key opens every devbox, so an agent never gets it. It gets the address of a small server of ours and a key that this
server generated: a request about that one devbox is sent to the endpoint with our key, every other is refused. So it
works with every endpoint, and with any client of the protocol in any language.

The allowed routes are a list, matched against the bytes of the path as received: nothing in it is decoded, so nothing
can mean another devbox after a later decoding. Routes that end or label a devbox are not on the list. Each attempt has
a server of its own: when it is gone, so is the key, and no table of keys can be wrong.
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
_REQUEST_HEADERS: Final = (
    "accept",
    "accept-encoding",
    "content-type",
    "content-length",
    "content-encoding",
    "x-request-id",
)
_ANSWER_HEADERS: Final = (
    "content-type",
    "content-length",
    "content-encoding",
    "content-disposition",
    "cache-control",
    "retry-after",
)
#: Until the endpoint takes a connection; the time that it then takes to answer is not limited here.
_CONNECT_TIMEOUT_S: Final = 10.0
#: Returns the present address of the endpoint, and our key to it.
Upstream = Callable[[], tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The address of a proxy to one devbox, and the key for it."""

    url: str
    token: str


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the sweep."""
        yield


@asynccontextmanager
async def open_proxy(upstream: Upstream, devbox_id: str) -> AsyncIterator[Access]:
    """Serve one devbox on loopback until the context is left; requests that are still open then are cut off."""
    token = f"devbox_{secrets.token_urlsafe(32)}"
    timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
    async with httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False) as http:
        proxy = _Proxy(upstream=upstream, devbox_id=devbox_id, token=token, http=http)
        config = uvicorn.Config(
            proxy, log_config=None, log_level=logging.CRITICAL, lifespan="off", ws="none", timeout_graceful_shutdown=0
        )
        server = _Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:

            async def serve() -> None:
                with anyio.CancelScope(shield=True):  # it ends by `should_exit`, in a fifth of a second
                    await server.serve([listener])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve)
                try:
                    yield Access(url=f"http://127.0.0.1:{listener.getsockname()[1]}", token=token)
                finally:
                    server.should_exit = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proxy:
    """The application: checks each request, and forwards or refuses it."""

    upstream: Upstream
    devbox_id: str
    token: str
    http: httpx.AsyncClient

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        given = request.headers.get("authorization", "").encode()
        # as received, not decoded; an unusual byte in it matches nothing
        path = bytes(scope.get("raw_path") or b"").decode("latin-1")
        allowed = f"/v1/devboxes/{re.escape(self.devbox_id)}{_ALLOWED.get(request.method, '$^')}"
        response: Response
        if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            response = _no(401, "this key is not that of a running attempt")
        elif re.fullmatch(allowed, path) is None:
            response = _no(403, f"{request.method} {path}: this key is for working in devbox {self.devbox_id} only")
        elif unknown := sorted(set(request.query_params) - _QUERY):
            response = _no(400, f"unknown query parameters: {', '.join(unknown)}")
        else:
            url, key = self.upstream()
            headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
            has_body = "content-length" in headers or "transfer-encoding" in request.headers
            forwarded = self.http.build_request(
                request.method,
                url.rstrip("/") + path,
                params=list(request.query_params.multi_items()),
                headers={**headers, "authorization": f"Bearer {key}"},
                content=request.stream() if has_body else None,
            )
            try:
                response = _Forwarded(await self.http.send(forwarded, stream=True))
            except ClientDisconnect:
                response = _no(400, "the request broke off")
            except httpx.HTTPError as error:
                response = _no(502, f"the endpoint cannot be reached: {type(error).__name__}")
        await response(scope, receive, send)


class _Forwarded(StreamingResponse):
    """The endpoint's answer on its way to the agent; the connection to the endpoint is closed with it."""

    def __init__(self, answer: httpx.Response) -> None:
        headers = {name: answer.headers[name] for name in _ANSWER_HEADERS if name in answer.headers}
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


def _no(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status_code=status)
