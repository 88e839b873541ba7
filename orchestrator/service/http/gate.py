"""Refusals before anybody looks at a token: of browsers, of endless heads, and of too many strangers.

What a web page on this machine sends is answered with 403, whatever else it knows. A page may send requests to any
address, and if the name it came from suddenly means this machine ("DNS rebinding") it may read the answers too. It
cannot choose two headers, though: `Host` is the name it believes to speak to, and `Origin` where it came from. Programs
send the former as their address has it and the latter not at all. A request without `Host` is no browser's.

Bodies wait in the socket until somebody reads them; heads do not, and the parser has no bound of its own, so a stranger
on this machine could fill our memory with one endless header, or hold all our sockets by never ending one. What the
protocol itself refuses has the shape of every other failure.
"""

import asyncio
import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from orchestrator.service.http.app import KNOWN, failure

#: Bytes of a head; the loop reads up to 256 KiB at a time, so that much more of it may be in memory for a moment.
MAX_HEAD_BYTES: Final = 1 << 16
#: Time for a head to arrive, and for the rest of a body that nobody reads because its request is answered already.
HEAD_TIMEOUT_S: Final = 10.0
#: Bytes that are thrown away of what a client goes on sending after it was refused.
MAX_DROPPED_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNames:
    """The names that a service answers to which listens on `host`; `others` are its owner's.

    On loopback these are loopback's. Elsewhere they are `host`, this machine's name, any address and any name without a
    dot, for containers give such names: no page comes from either. The port may be any: tunnels and containers map it,
    and no page chooses the name by it.
    """

    host: str
    others: frozenset[str] = frozenset()
    machine: frozenset[str] = field(default_factory=lambda: frozenset({socket.gethostname(), socket.getfqdn()}))

    def include(self, header: str) -> bool:
        """Tell whether a Host header has one of them."""
        if not header.isprintable() or set(header) & set("@/?#\\, "):
            return False
        try:
            found = urlsplit(f"//{header}")
            port = found.port
        except ValueError:
            return False
        if not found.hostname or port == 0:
            return False
        name = found.hostname.rstrip(".")
        if name in self.others:
            return True
        if is_loopback(self.host):
            return is_loopback(name)
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return "." not in name or name in {self.host.lower(), *map(str.lower, self.machine)}


class BrowserGate:
    """Answers requests that a browser sent, or may have sent, before anybody looks at them."""

    def __init__(self, app: ASGIApp, names: HostNames) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        own = {f"http{s}://{host.lower()}" for s in ("", "s") for host in hosts}
        answer = self._app
        if len(hosts) > 1 or not all(map(self._names.include, hosts)):
            answer = failure(
                403,
                f"This service does not answer to the name {', '.join(hosts)!r}. Use the address that it printed, "
                "or start it with --allow-host NAME.",
            )
        elif not {origin.lower() for origin in origins} <= own:
            answer = failure(403, f"This service answers no web page, and {', '.join(origins)!r} has sent this.")
        await answer(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Strangers:
    """The connections that have not shown the token yet; when there are too many, the eldest is closed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._eldest_first: dict[BoundedHeads, None] = {}

    def add(self, connection: "BoundedHeads") -> None:
        self._eldest_first[connection] = None
        if len(self._eldest_first) > self._limit:
            eldest = next(iter(self._eldest_first))
            del self._eldest_first[eldest]
            eldest.transport.abort()

    def remove(self, connection: "BoundedHeads") -> None:
        """It has shown the token, or it is gone."""
        self._eldest_first.pop(connection, None)


class BoundedHeads(HttpToolsProtocol):
    """Answers 431 for a head of more than MAX_HEAD_BYTES, and closes where one takes longer than HEAD_TIMEOUT_S."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        strangers: Strangers,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._strangers = strangers
        self._is_in_head = True
        #: Bytes of URL and headers of this request, and bytes since the parser last had something to say.
        self._head = 0
        self._unheard = 0
        self._is_refused = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._strangers.add(self)
        self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._strangers.remove(self)
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._unheard += len(data)
            if self._unheard > MAX_DROPPED_BYTES:
                self.transport.abort()
            return
        if self._is_in_head and self._deadline is None:
            self._expect_more()
        self._unheard += len(data)
        super().data_received(data)
        if self._unheard > MAX_HEAD_BYTES and not self._is_refused:
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0
        self.scope["extensions"] = {KNOWN: {"call": lambda: self._strangers.remove(self)}}

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the head, or of the trailer that a body in chunks may have."""
        self._count(len(name) + len(b": ") + len(value) + len(b"\r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head, self._unheard = False, 0
        self._expect_nothing()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unheard = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_in_head, self._unheard = True, 0
        self._expect_nothing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self._is_in_head:
            self._expect_more()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser could not read; uvicorn calls this."""
        if self._head > MAX_HEAD_BYTES:
            self._refuse_head()
        else:
            self._refuse(400, msg)

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > MAX_HEAD_BYTES:
            raise ValueError  # the parser stops at it

    def _refuse_head(self) -> None:
        self._refuse(431, f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer, and close once the client has; where an answer is under way, close now.

        Closing while the client still sends would reset the connection, and the answer would be lost on the way.
        """
        self._is_refused, self._unheard = True, 0
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            self.transport.close()
            return
        answer = failure(status, message)
        head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
        self.transport.write(b"HTTP/1.1 %d \r\n%sconnection: close\r\n\r\n%s" % (status, head, bytes(answer.body)))
        self.transport.write_eof()
        self._expect_more()

    def _expect_more(self) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
