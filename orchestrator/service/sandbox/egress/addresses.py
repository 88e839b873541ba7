"""Addresses of names, and the question whether an address is on the public internet.

Its secret: the many spellings of "this machine and its neighbours". The address that is connected to decides, looked up
once, never the name. The standard library's `is_global` follows the registries of its day (192.88.99.0/24 and 3fff::/20
are public to some supported versions), counts multicast as public, and does not know clouds, this machine's own
addresses, or the networks of its interfaces; so the public ranges are listed here, the same for every version.
"""

import re
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from orchestrator.service.sandbox.egress.rules import IPAddress

Resolver = Callable[[str, int], Awaitable[Sequence[IPAddress]]]
LOOKUP_TIMEOUT_S: Final = 15.0
#: Ranges that are not global in IANA's IPv4 Special-Purpose Address Registry
#: (iana.org/assignments/iana-ipv4-special-registry), multicast (RFC 5771), and addresses in public ranges that are a
#: cloud's own machines when seen from inside the cloud.
_CLOSED_4: Final = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            # Also 192.0.0.9 and .10, though registered as global: anycast, answered by the nearest gateway.
            "192.0.0.0/24",
            *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
            *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
            "168.63.129.16/32",  # Azure's host: learn.microsoft.com, "What is IP address 168.63.129.16?"
            *("161.26.0.0/16", "166.8.0.0/14"),  # IBM Cloud's own services, of its private network
            "192.80.8.124/32",  # metadata of Equinix Metal
        ),
    )
)
#: Of these, what is no neighbour: the machine itself, no host at all, and the metadata of clouds.
_OWN_RANGES: Final = (
    *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"),
    *("168.63.129.16/32", "192.80.8.124/32"),
)
#: The only part of IPv6 that is assigned to hosts on the internet (iana.org/assignments/ipv6-address-space).
_UNICAST_6: Final = IPv6Network("2000::/3")
#: Parts of it that are not global in IANA's IPv6 Special-Purpose Address Registry (iana-ipv6-special-registry), or lead
#: to an IPv4 address behind a relay (6to4, Teredo), or were returned (6bone, ORCHID).
_CLOSED_6: Final = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3ffe::/16", "3fff::/20")))
#: Parts of those that are global all the same. 2001:1::/126 is too, but the nearest gateway answers it, as 192.0.0.9.
_OPEN_6: Final = tuple(map(IPv6Network, ("2001:3::/32", "2001:4:112::/48", "2001:20::/28", "2001:30::/28")))
#: IPv4 addresses behind a translator (RFC 6052): each counts as the IPv4 address in it.
_TRANSLATED: Final = IPv6Network("64:ff9b::/96")
#: Networks with shorter prefixes are routes to the internet through a tunnel without a gateway, and no neighbourhood.
_NEAR_4: Final = 8
_NEAR_6: Final = 32
_GATEWAY: Final = 0x2
_ROUTES_4: Final = Path("/proc/net/route")
_ROUTES_6: Final = Path("/proc/net/ipv6_route")
_OWN_4: Final = Path("/proc/net/fib_trie")


def is_public(address: IPAddress) -> bool:
    """Tell whether an address is on the internet, and neither this machine's nor in a network of its interfaces."""
    if isinstance(address, IPv6Address) and address in _TRANSLATED:
        return is_public(_translated(address))
    if not is_global(address):
        return False

    # The route to an address of this machine begins at that address. No packet is sent.
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as trial:
        trial.connect((str(address), 9))
        if ip_address(trial.getsockname()[0]) == address:
            return False

    # Laptops and printers have public IPv6 addresses too.
    near: list[IPv4Network | IPv6Network] = []
    with suppress(OSError):
        near += near_networks(_ROUTES_4.read_text(), "")
    with suppress(OSError):
        near += near_networks("", _ROUTES_6.read_text())
    return not any(address in network for network in near)


def is_global(address: IPAddress) -> bool:
    """Tell whether an address is on the internet, seen from any machine."""
    if isinstance(address, IPv6Address) and address in _TRANSLATED:
        return is_global(_translated(address))
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _CLOSED_4)
    is_closed = any(address in network for network in _CLOSED_6) and not any(address in each for each in _OPEN_6)
    return address in _UNICAST_6 and not is_closed


def closed_networks() -> list[IPv4Network]:
    """Return all of IPv4 that is not on the internet, or this machine's, or near it. Raises OSError."""
    near = [network for network in near_networks(_ROUTES_4.read_text(), "") if isinstance(network, IPv4Network)]
    return list(collapse_addresses([*_CLOSED_4, *near, *own_networks()]))


def own_networks() -> list[IPv4Network]:
    """Return all of IPv4 that is this machine's, or no host's, or a cloud's words to its machines. Raises OSError."""
    own = re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", _OWN_4.read_text())
    return list(collapse_addresses([*map(IPv4Network, _OWN_RANGES), *map(IPv4Network, own)]))


def _translated(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFF_FFFF)


def near_networks(routes: str, routes_6: str) -> Iterator[IPv4Network | IPv6Network]:
    """Networks reached without a gateway, given the text of /proc/net/route and of /proc/net/ipv6_route."""
    for line in routes.splitlines()[1:]:
        _, target, gateway, flags, *_, mask, _, _, _ = line.split()
        length = int(mask, 16).bit_count()
        if not int(flags, 16) & _GATEWAY and int(gateway, 16) == 0 and length >= _NEAR_4:
            yield IPv4Network((int(target, 16).to_bytes(4, sys.byteorder), length), strict=False)
    for line in routes_6.splitlines():
        target, length_6, _, _, gateway, _, _, _, flags, _ = line.split()
        if not int(flags, 16) & _GATEWAY and int(gateway, 16) == 0 and int(length_6, 16) >= _NEAR_6:
            yield IPv6Network((int(target, 16), int(length_6, 16)), strict=False)


def looked_up(lookups: int) -> Resolver:
    """Return the machine's own resolver with `lookups` threads of its own: a box with slow names delays no other."""
    limiter = anyio.CapacityLimiter(lookups)

    async def resolve(host: str, port: int) -> Sequence[IPAddress]:
        """Look up a name. Raises OSError, and TimeoutError."""
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        with anyio.fail_after(LOOKUP_TIMEOUT_S):
            found = await anyio.to_thread.run_sync(ask, limiter=limiter, abandon_on_cancel=True)
        return tuple(dict.fromkeys(address_of(str(place[0])) for *_, place in found))

    return resolve


def address_of(text: str) -> IPAddress:
    """Parse an address, without the interface's name. Raises ValueError."""
    address = ip_address(text)
    return IPv6Address(int(address)) if isinstance(address, IPv6Address) else address
