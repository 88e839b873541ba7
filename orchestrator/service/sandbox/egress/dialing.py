"""Connections to the outside: to an address that somebody has judged, or by the proxy of the network that we are in."""

import asyncio
import base64
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final, Self
from urllib.parse import unquote, urlsplit

import anyio

from orchestrator.service.sandbox.egress.addresses import Resolver
from orchestrator.service.sandbox.egress.rules import Address, is_address, spelled

CONNECT_PATIENCE: Final = 10.0
#: Another proxy may look up a name, and connect, before it answers.
UPSTREAM_PATIENCE: Final = 60.0
_MAX_ANSWER: Final = 64 << 10


class Unreachable(Exception):
    """It is allowed, and cannot be had; the words are for the client."""


async def connect_one(name: str, addresses: Iterable[Address], port: int) -> socket.socket:
    """The first that answers. Raises Unreachable."""
    why = ""
    for address in addresses:
        try:
            with anyio.fail_after(CONNECT_PATIENCE):
                return await dial(address, port)
        except OSError as error:
            why = str(error) or f"no answer in {CONNECT_PATIENCE:g} s"
    raise Unreachable(f"{name} cannot be reached: {why}.")


async def dial(address: Address, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    server = socket.socket(family, socket.SOCK_STREAM)
    with kept(server):
        server.settimeout(0)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(server, (str(address), port))
    return server


@contextmanager
def kept(sock: socket.socket) -> Iterator[None]:
    """Close it if what is done inside fails."""
    try:
        yield
    except BaseException:
        sock.close()
        raise


def _means(entry: str, host: str, port: int) -> bool:
    """Whether an entry of `no_proxy` is about a host: all of them, an address, a network, or a name and all below."""
    if entry == "*":
        return True
    if is_address(host):
        with suppress(ValueError):
            return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    return f".{host}:{port}".endswith((f".{entry.lstrip('*.')}:{port}", f".{entry.lstrip('*.')}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A proxy that this machine itself goes out by, as `http_proxy` names it; `bypass` is as `no_proxy` has it."""

    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)
    bypass: str = ""

    @classmethod
    def parse(cls, url: str, bypass: str = "") -> Self:
        """Raises ValueError, which does not repeat the URL, for what is no proxy that speaks plain HTTP."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("the proxy of this machine's settings is not of the form http://host:port")
        given = b"" if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        return cls(
            host=parts.hostname, port=parts.port or 80, authorization=base64.b64encode(given), bypass=bypass.strip()
        )

    def serves(self, host: str, port: int) -> bool:
        """Whether the way to a host is by it."""
        return not any(_means(entry.strip().lower(), host, port) for entry in self.bypass.split(",") if entry.strip())

    async def connect(self, host: str, port: int, resolve: Resolver) -> socket.socket:
        """A way to the host, by the proxy. Raises Unreachable."""
        name = spelled(host, port)
        try:
            server = await connect_one("the proxy of this machine", await resolve(self.host, self.port), self.port)
            with kept(server), anyio.fail_after(UPSTREAM_PATIENCE):
                answer = await self._ask(server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
                if not answer.partition(b" ")[2].startswith(b"200"):
                    said = answer.partition(b"\r\n")[0].decode(errors="replace")
                    raise Unreachable(f"{name} cannot be reached: the proxy of this machine says {said!r}.")
        except OSError as error:
            why = str(error) or "no answer in time"
            raise Unreachable(f"{name} cannot be reached by the proxy of this machine: {why}.") from None
        return server

    async def _ask(self, server: socket.socket, place: str) -> bytes:
        """The head of the answer, and not a byte of what follows it. Raises OSError."""
        loop, answer = asyncio.get_running_loop(), bytearray()
        lines = [f"CONNECT {place} HTTP/1.1".encode(), f"Host: {place}".encode()]
        lines += [b"Proxy-Authorization: Basic " + self.authorization] if self.authorization else []
        await loop.sock_sendall(server, b"\r\n".join(lines) + b"\r\n\r\n")
        while not answer.endswith(b"\r\n\r\n"):
            part = await loop.sock_recv(server, 1)
            if not part or len(answer) > _MAX_ANSWER:
                raise OSError("what it answers is no answer of a proxy")
            answer += part
        return bytes(answer)
