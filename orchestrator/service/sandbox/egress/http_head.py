"""What clients of the proxy ask for, and the proxy's own answers.

A head is read by h11, the parser of the machine's HTTP servers, so that nothing gets through here that another would
read differently. What follows the head is not HTTP to us.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

import h11

from orchestrator.service.sandbox.egress.rules import known_host

MAX_HEAD: Final = 64 << 10
CONNECTED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
#: Headers that are between the client and us.
_OURS: Final = frozenset({b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive", b"te", b"upgrade"})


class BadHead(Exception):
    """It is no request to a proxy; `status` and the words are for the client."""

    def __init__(self, words: str, status: int = 400) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Where a client wants to go, and what is to be sent there first; a tunnel is told when it is open."""

    host: str
    port: int
    first: bytes
    is_tunnel: bool


class Head:
    """A request's head as it comes in."""

    def __init__(self) -> None:
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    def feed(self, data: bytes) -> Asked | None:
        """What is asked for, None while the head is not whole. Raises BadHead."""
        try:
            self._parser.receive_data(data)
            event = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            raise BadHead(f"The request cannot be read: {error}.", error.error_status_hint) from None
        if not isinstance(event, h11.Request):
            return None
        target, (behind, _) = event.target.decode("ascii"), self._parser.trailing_data
        if event.method == b"CONNECT":
            host, port = _destination(f"//{target}", None)
            return Asked(host=host, port=port, first=behind, is_tunnel=True)
        if not target.startswith("http://"):
            raise BadHead("This is the way out of a devbox, a proxy: it takes CONNECT, and http:// addresses in full.")
        host, port = _destination(target, 80)
        return Asked(host=host, port=port, first=_forwarded(event, urlsplit(target)) + behind, is_tunnel=False)


def _destination(target: str, default: int | None) -> tuple[str, int]:
    try:
        url = urlsplit(target)
        host, port = known_host(url.hostname or ""), url.port or default
    except ValueError:
        host, port = "", None
    if not host or port is None:
        raise BadHead("The address is not of the form host:port.")
    return host, port


def _forwarded(request: h11.Request, url: SplitResult) -> bytes:
    """The head as the server is to see it. One request to a connection: no second one goes where the first went."""
    named = {
        name.strip().lower()
        for header, value in request.headers
        if header == b"connection"
        for name in value.split(b",")
    }
    dropped = _OURS | named | {b"host"}
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    lines = [
        b"%s %s HTTP/1.1" % (request.method, target.encode()),
        b"Host: " + url.netloc.rpartition("@")[2].encode(),
        *(b"%s: %s" % each for each in request.headers.raw_items() if each[0].lower() not in dropped),
        b"Connection: close",
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def refusal(status: int, reason: str, words: str) -> bytes:
    """An answer of ours. Many clients show no more of it than the reason."""
    body = f"{words}\n".encode()
    lines = [
        f"HTTP/1.1 {status} {reason}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
