"""Where a name leads, and whether that is a place on the public internet.

Its secret: the many spellings of "this machine and its neighbours". An IPv6 address may carry an IPv4 one, "global" to
the standard library are multicast and translated addresses too, and a public address may be one of this machine's own,
behind its firewall. What counts is the address that is connected to, looked up once, never the name.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

import anyio
import anyio.to_thread

from orchestrator.service.egress.rules import Address

Resolver = Callable[[str, int], Awaitable[Sequence[Address]]]
#: Seconds that a look-up may take.
PATIENCE: Final = 15.0
_TRANSLATED: Final = tuple(map(IPv6Network, ("::ffff:0:0/96", "::/96", "64:ff9b::/96", "64:ff9b:1::/48")))


def is_public(address: Address) -> bool:
    """Whether it is somewhere on the internet, and not this machine."""
    is_special = address.is_multicast or address.is_reserved or not address.is_global
    return not (is_special or _stands_for_another(address) or _is_ours(address))


def _stands_for_another(address: Address) -> bool:
    """Whether it is an IPv6 address that leads to an IPv4 one behind some gateway, or only to the site."""
    if isinstance(address, IPv4Address):
        return False
    is_translated = any(address in network for network in _TRANSLATED)
    return is_translated or bool(address.sixtofour or address.teredo or address.is_site_local)


def _is_ours(address: Address) -> bool:
    """Whether it is one of this machine's own: then the way to it begins there. No packet is sent."""
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as trial:
        trial.connect((str(address), 9))
        return bool(ip_address(trial.getsockname()[0]) == address)
    return False


def looked_up(lookups: int) -> Resolver:
    """The machine's own resolver, asked by at most so many threads at once: one who has slow names waits alone."""
    limiter = anyio.CapacityLimiter(lookups)

    async def resolve(host: str, port: int) -> Sequence[Address]:
        """Raises OSError, and TimeoutError."""
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        with anyio.fail_after(PATIENCE):
            found = await anyio.to_thread.run_sync(ask, limiter=limiter, abandon_on_cancel=True)
        return tuple(dict.fromkeys(_address(place[0]) for *_, place in found))

    return resolve


def _address(text: str | int) -> Address:
    address = ip_address(str(text))
    return IPv6Address(int(address)) if isinstance(address, IPv6Address) else address  # without the interface's name
