"""The hosts that a devbox may reach: rules as users write them, and the network that two policies give together.

    name       ports 443 and 80 of this host       name:port                                        this port alone
    *.name     the same of every host below it     127.0.0.1:8765, [::1]:8765, localhost:8765       an address

An address that is not public (this machine's, its neighbours') can be reached only where a rule names that address, or
`localhost`: the owner of a name decides where it leads. Names that the user of this machine gave, for example those of
package indexes, are `trusted` and may lead anywhere. Pure.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Self

IPAddress = IPv4Address | IPv6Address

DEFAULT_PORTS: Final = frozenset({443, 80})
LOCALHOST: Final = "localhost"
#: No program in a devbox may listen on a lower port.
FIRST_FREE_PORT: Final = 1024
MAX_HOSTS: Final = 1000
#: Suffixes of names that mean this machine, its site or its cloud (RFC 6761, 6762, 8375, and what ICANN set aside).
_LOCAL_SUFFIXES: Final = ("localhost", "local", "internal", "home.arpa")
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_RULE: Final = re.compile(r"(?P<below>\*\.)?(?:\[(?P<six>[^\]]*)\]|(?P<name>[^:\[\]*]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One host and its ports; with `is_below`, all hosts whose names end with a dot and `host`."""

    host: str
    ports: frozenset[int] = DEFAULT_PORTS
    is_below: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse one rule. Raises ValueError naming the expected forms."""
        found = _RULE.fullmatch(text.strip())
        host = "" if found is None else known_host(found["six"] or found["name"] or "")
        if found is None or not host or (found["below"] and is_address(host)):
            raise ValueError(f"{text!r} is not a host: write name, *.name, name:port or an address")
        port = int(found["port"]) if found["port"] else None
        if port is not None and not 1 <= port <= 65535:
            raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
        ports = DEFAULT_PORTS if port is None else frozenset({port})
        return cls(host=host, ports=ports, is_below=bool(found["below"]))

    def __str__(self) -> str:
        name = f"*.{self.host}" if self.is_below else self.host
        return " or ".join(dict.fromkeys(spelled(name, port) for port in sorted(self.ports)))

    def lets(self, host: str, port: int) -> bool:
        is_meant = host.endswith(f".{self.host}") and not is_address(host) if self.is_below else host == self.host
        return is_meant and port in self.ports

    def names(self, address: IPAddress, port: int) -> bool:
        """Tell whether the rule names this very address."""
        if self.is_below or port not in self.ports:
            return False
        return address.is_loopback if self.host == LOCALHOST else self.host == str(address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All rules of one devbox. Every `host` argument is in the form of `known_host`.

    With `is_public`, any port of any public host on the internet is allowed too.
    """

    all: tuple[Rule, ...]
    is_public: bool = False
    trusted: tuple[Rule, ...] = ()

    @classmethod
    def parse(cls, hosts: Iterable[str], *, is_public: bool = False, trusted: Iterable[str] = ()) -> Self:
        """Parse rules. Raises ValueError naming the first wrong one."""
        own = tuple(Rule.parse(host) for host in trusted)
        return cls(all=(*own, *(Rule.parse(host) for host in hosts)), is_public=is_public, trusted=own)

    def lets(self, host: str, port: int) -> bool:
        """Tell whether the host may be looked up. With `is_public`, a local name is not, whatever its address."""
        if any(rule.lets(host, port) for rule in self.all):
            return True
        is_local = "." not in host or any(f".{host}".endswith(f".{suffix}") for suffix in _LOCAL_SUFFIXES)
        return self.is_public and (is_address(host) or not is_local)

    def trusts(self, host: str, port: int) -> bool:
        """Tell whether the host may lead to any address."""
        return any(rule.lets(host, port) for rule in self.trusted)

    def names(self, address: IPAddress, port: int) -> bool:
        return any(rule.names(address, port) for rule in self.all)

    @property
    def straight(self) -> dict[int, str]:
        """Named ports of this machine's loopback, as {port: host}; each is served on the same port in the box."""
        named = [rule for rule in self.all if rule.host in {LOCALHOST, "127.0.0.1"} and not rule.is_below]
        return {port: rule.host for rule in named for port in rule.ports if port >= FIRST_FREE_PORT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The machine's own network (`is_open`), the public internet and the hosts named, these alone, or nothing."""

    is_open: bool = False
    is_public: bool = False
    hosts: tuple[str, ...] = ()

    def under(self, policy: "Network") -> "Network":
        """Combine a scenario's network with the `policy` of the run.

        A policy of nothing wins, and so does one of everything. One of hosts, or of the internet, adds to the
        scenario's network.
        """
        if policy.is_open or not (policy.hosts or policy.is_public):
            return policy
        return Network(
            is_open=self.is_open,
            is_public=self.is_public or policy.is_public,
            hosts=tuple(dict.fromkeys((*self.hosts, *policy.hosts))),
        )


def known_host(text: str) -> str:
    """Normalize a host: lower case, no dot at the end, addresses in their shortest form; "" if `text` is no host."""
    host = text.lower().removesuffix(".")
    try:
        return str(ip_address(host))
    except ValueError:
        return host if len(host) <= 253 and _NAME.fullmatch(host) else ""


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def spelled(host: str, port: int) -> str:
    """Write a destination in the form of a rule for it."""
    name = f"[{host}]" if ":" in host else host
    return name if port in DEFAULT_PORTS else f"{name}:{port}"


def check_hosts(hosts: Sequence[str]) -> None:
    """Raise ValueError for a text that is not a rule, and for more than MAX_HOSTS rules."""
    if len(hosts) > MAX_HOSTS:
        raise ValueError(f"{len(hosts)} hosts are more than the {MAX_HOSTS} that a policy may name")
    Rules.parse(hosts)
