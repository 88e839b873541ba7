"""Keeps browsers out: what a web page on this machine sends is answered with 403, whatever else it knows.

A page may send requests to any address, and if the name it came from suddenly means this machine ("DNS rebinding") it
may read the answers too. It cannot choose two headers, though: `Host` is the name it believes to speak to, and
`Origin` where it came from. Programs send the former as their address has it and the latter not at all. A request
without `Host` is no browser's.
"""

import ipaddress
import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.service.address import is_loopback
from orchestrator.service.http.app import failure


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
        """Whether a Host header has one of them."""
        try:
            name = _parse(header)
        except ValueError:
            return False
        if name in self.others:
            return True
        if is_loopback(self.host):
            return is_loopback(name)
        return _is_address(name) or "." not in name or name in {self.host.lower(), *map(str.lower, self.machine)}


class BrowserGate:
    """Answers what a browser sends, or may have sent, before anybody looks at it."""

    def __init__(self, app: ASGIApp, names: HostNames) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, headers: Headers) -> Response | None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) > 1 or not all(map(self._names.include, hosts)):
            return failure(
                403,
                f"This service does not answer to the name {', '.join(hosts)!r}. Use the address that it printed, "
                "or start it with --allow-host NAME.",
            )
        if not {origin.lower() for origin in origins} <= {
            f"http{s}://{host.lower()}" for s in ("", "s") for host in hosts
        }:
            return failure(403, f"This service answers no web page, and {', '.join(origins)!r} has sent this.")
        return None


def _parse(header: str) -> str:
    """The name in a Host header. Raises ValueError, also for what is no port."""
    if not header.isprintable() or set(header) & set("@/?#\\, "):
        raise ValueError(header)
    found = urlsplit(f"//{header}")
    if not found.hostname or found.port == 0:
        raise ValueError(header)
    return found.hostname.rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
