"""Connections to the outside: to an address that the rules have judged, or through this machine's own proxy."""

import asyncio
import base64
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final, Self
from urllib.parse import unquote, urlsplit

import anyio

from orchestrator.service.sandbox.egress.addresses import Resolver
from orchestrator.service.sandbox.egress.rules import IPAddress, spelled

CONNECT_TIMEOUT_S: Final = 10.0
#: Another proxy may look up a name, and connect, before it answers.
UPSTREAM_TIMEOUT_S: Final = 60.0
_MAX_ANSWER_BYTES: Final = 64 << 10


class Unreachable(Exception):
    """The rules allow a connection, but it cannot be made; the message is for the client."""


async def connect_one(name: str, addresses: Iterable[IPAddress], port: int) -> socket.socket:
    """Connect to the first address that answers. Raises Unreachable."""
    why = ""
    for address in addresses:
        try:
            with anyio.fail_after(CONNECT_TIMEOUT_S):
                return await dial(address, port)
        except OSError as error:
            why = str(error) or f"no answer in {CONNECT_TIMEOUT_S:g} s"
    raise Unreachable(f"{name} cannot be reached: {why}.")


async def dial(address: IPAddress, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    server = socket.socket(family, socket.SOCK_STREAM)
    with kept(server):
        server.settimeout(0)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(server, (str(address), port))
    return server


@contextmanager
def kept(sock: socket.socket) -> Iterator[None]:
    """Close `sock` if the block fails."""
    try:
        yield
    except BaseException:
        sock.close()
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """The proxy that this machine itself uses, as `http_proxy` names it; `bypass` has the form of `no_proxy`."""

    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)
    bypass: str = ""

    @classmethod
    def parse(cls, url: str, bypass: str = "") -> Self:
        """Parse a proxy's URL. Raises ValueError, without the URL in it, for a proxy that does not use plain HTTP."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("the proxy of this machine's settings is not of the form http://host:port")
        given = b"" if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        return cls(
            host=parts.hostname, port=parts.port or 80, authorization=base64.b64encode(given), bypass=bypass.strip()
        )

    def serves(self, host: str, port: int) -> bool:
        """Tell whether connections to a host go through this proxy."""
        for entry in filter(None, (each.strip().lower() for each in self.bypass.split(","))):
            name = entry.lstrip("*.")
            try:
                is_bypassed = ip_address(host) in ip_network(entry.strip("[]"), strict=False)
            except ValueError:  # one of the two is a name
                is_bypassed = entry == "*" or f".{host}:{port}".endswith((f".{name}:{port}", f".{name}"))
            if is_bypassed:
                return False
        return True

    async def connect(self, host: str, port: int, resolve: Resolver) -> socket.socket:
        """Open a tunnel to the host through the proxy. Raises Unreachable."""
        loop, name = asyncio.get_running_loop(), spelled(host, port)
        failed = f"{name} cannot be reached by the proxy of this machine"
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1".encode(), f"Host: {target}".encode()]
        lines += [b"Proxy-Authorization: Basic " + self.authorization] if self.authorization else []
        try:
            server = await connect_one("the proxy of this machine", await resolve(self.host, self.port), self.port)
            with kept(server), anyio.fail_after(UPSTREAM_TIMEOUT_S):
                await loop.sock_sendall(server, b"\r\n".join(lines) + b"\r\n\r\n")

                # Not a byte of what follows the answer's head is read.
                answer = bytearray()
                while not answer.endswith(b"\r\n\r\n"):
                    part = await loop.sock_recv(server, 1)
                    if not part or len(answer) > _MAX_ANSWER_BYTES:
                        raise Unreachable(f"{failed}: what it answers is no answer of a proxy.")
                    answer += part

                if not answer.partition(b" ")[2].startswith(b"200"):
                    said = answer.partition(b"\r\n")[0].decode(errors="replace")
                    raise Unreachable(f"{name} cannot be reached: the proxy of this machine says {said!r}.")
        except OSError as error:
            why = str(error) or "no answer in time"
            raise Unreachable(f"{failed}: {why}.") from None
        return server
