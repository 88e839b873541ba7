"""Somebody between a sweep and its endpoint who now and then answers in the endpoint's place: a captive portal, a
balancer that lost its backend, a firewall. Everything else passes as it is, piece by piece, in both directions.

    with Proxy(port, lambda request: WRONG["html-200"] if "upload_file" in request else None).open() as proxy:
        …  # clients use proxy.url; proxy.hits says whom it answered

Loopback only. A client that goes away takes its request at the endpoint with it, as without a proxy.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import SocketStream, TaskStatus
from anyio.from_thread import start_blocking_portal
from anyio.streams.buffered import BufferedByteReceiveStream

HOST: Final = "127.0.0.1"
LONGEST_HEAD: Final = 1 << 20
GONE: Final = (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)
_PAGE: Final = b"<!doctype html><html><body><h1>Welcome</h1><p>Please log in to use this network.</p></body></html>\n"


def _answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers]
    if status[:3] != "204":
        lines.append(f"content-length: {len(body)}")
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def _page(status: str) -> bytes:
    return _answer(status, _PAGE, "content-type: text/html; charset=utf-8")


def _json(body: bytes) -> bytes:
    return _answer("200 OK", body, "content-type: application/json")


#: Answers of nobody who knows the protocol, by name.
WRONG: Final = {
    "html-200": _page("200 OK"),
    "html-403": _page("403 Forbidden"),
    "html-404": _page("404 Not Found"),
    "html-502": _page("502 Bad Gateway"),
    "nothing-200": _json(b""),
    "nothing-204": _answer("204 No Content"),
    "object-200": _json(b"{}"),
    "null-200": _json(b"null"),
    "list-200": _json(b"[]"),
    "redirect-302": _answer("302 Found", b"", "location: /login"),
}

#: Given the first line of a request (`POST /v1/scenarios/start_run HTTP/1.1`): a whole answer, or None to let it pass.
Choose = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True)
class _Head:
    """The head of a request or of an answer, and what follows from it for its body."""

    data: bytes

    @property
    def first(self) -> str:
        return self.data.partition(b"\r\n")[0].decode("latin-1")

    def field(self, name: str) -> str:
        for line in self.data.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.encode():
                return value.strip().decode("latin-1").lower()
        return ""


@dataclass(slots=True)
class Proxy:
    """Listens on `port` while it is open, and speaks to the server on `target`."""

    target: int
    choose: Choose
    port: int = 0
    #: The first lines of the requests that were answered here.
    hits: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @contextmanager
    def open(self) -> Iterator["Proxy"]:
        """Work in a thread of its own."""
        with start_blocking_portal() as portal:
            work, self.port = portal.start_task(self._listen)
            try:
                yield self
            finally:
                work.cancel()

    async def _listen(self, *, task_status: TaskStatus[int]) -> None:
        listener = await anyio.create_tcp_listener(local_host=HOST, local_port=self.port, backlog=1024)
        async with listener:
            task_status.started(listener.extra(anyio.abc.SocketAttribute.local_port))
            await listener.serve(self._serve)

    async def _serve(self, stream: SocketStream) -> None:
        client = BufferedByteReceiveStream(stream)
        async with stream:
            try:
                while await self._exchange(stream, client):
                    pass
            except GONE:
                return

    async def _exchange(self, stream: SocketStream, client: BufferedByteReceiveStream) -> bool:
        """One request and its answer; whether the connection can be used for another."""
        head = await _read_head(client)
        answer = self.choose(head.first)
        if answer is not None:
            self.hits.append(head.first)
            async for _ in _body(client, head):
                pass
            await stream.send(answer)
            return True
        is_whole = False
        async with await anyio.connect_tcp(HOST, self.target) as endpoint, anyio.create_task_group() as tasks:
            with suppress(*GONE):
                await endpoint.send(head.data)
                async for piece in _body(client, head):
                    await endpoint.send(piece)
                tasks.start_soon(_watch, stream, client, tasks.cancel_scope)
                is_whole = await _relay(BufferedByteReceiveStream(endpoint), stream)
            tasks.cancel_scope.cancel()
        return is_whole


async def _watch(stream: SocketStream, client: BufferedByteReceiveStream, exchange: anyio.CancelScope) -> None:
    """End an exchange whose client has gone; what a client says meanwhile is the beginning of its next request."""
    try:
        while True:
            client.feed_data(await stream.receive())
    except GONE:
        exchange.cancel()


async def _relay(endpoint: BufferedByteReceiveStream, stream: SocketStream) -> bool:
    """Pass an answer on as it comes; whether its end was said, and not shown by the connection's."""
    while True:
        head = await _read_head(endpoint)
        await stream.send(head.data)
        status = head.first.split()[1]
        if not status.startswith("1"):
            break
    if status in {"204", "304"}:
        return True
    if not head.field("content-length") and not head.field("transfer-encoding"):
        async for piece in endpoint:
            await stream.send(piece)
        return False
    async for piece in _body(endpoint, head):
        await stream.send(piece)
    return head.field("connection") != "close"


async def _read_head(stream: BufferedByteReceiveStream) -> _Head:
    return _Head(await stream.receive_until(b"\r\n\r\n", LONGEST_HEAD) + b"\r\n\r\n")


async def _body(stream: BufferedByteReceiveStream, head: _Head) -> AsyncIterator[bytes]:
    """A body as it stands on the wire, its chunks' frames included."""
    if "chunked" in head.field("transfer-encoding"):
        size = -1
        while size:
            line = await stream.receive_until(b"\r\n", LONGEST_HEAD)
            size = int(line.partition(b";")[0], 16)
            yield line + b"\r\n"
            async for piece in _exactly(stream, size + 2):
                yield piece
    else:
        async for piece in _exactly(stream, int(head.field("content-length") or 0)):
            yield piece


async def _exactly(stream: BufferedByteReceiveStream, size: int) -> AsyncIterator[bytes]:
    while size:
        piece = await stream.receive(min(size, 1 << 16))
        size -= len(piece)
        yield piece
