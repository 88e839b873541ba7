"""Public addresses: IANA's registries, private ones in public ranges, and our own."""

import socket
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final

import pytest

from orchestrator.service.sandbox.egress import addresses
from orchestrator.service.sandbox.egress.addresses import is_global, is_public, near_networks

#: IANA's IPv4 Special-Purpose Address Registry: block, name, globally reachable (None: not applicable).
REGISTRY_4: Final = (
    ("0.0.0.0/8", "This network", False),
    ("0.0.0.0/32", "This host on this network", False),
    ("10.0.0.0/8", "Private-Use", False),
    ("100.64.0.0/10", "Shared Address Space", False),
    ("127.0.0.0/8", "Loopback", False),
    ("169.254.0.0/16", "Link Local", False),
    ("172.16.0.0/12", "Private-Use", False),
    ("192.0.0.0/24", "IETF Protocol Assignments", False),
    ("192.0.0.0/29", "IPv4 Service Continuity Prefix", False),
    ("192.0.0.8/32", "IPv4 dummy address", False),
    ("192.0.0.9/32", "Port Control Protocol Anycast", True),
    ("192.0.0.10/32", "Traversal Using Relays around NAT Anycast", True),
    ("192.0.0.170/31", "NAT64/DNS64 Discovery", False),
    ("192.0.2.0/24", "Documentation (TEST-NET-1)", False),
    ("192.31.196.0/24", "AS112-v4", True),
    ("192.52.193.0/24", "AMT", True),
    ("192.88.99.0/24", "Deprecated (6to4 Relay Anycast)", None),
    ("192.88.99.2/32", "6a44-relay anycast address", False),
    ("192.168.0.0/16", "Private-Use", False),
    ("192.175.48.0/24", "Direct Delegation AS112 Service", True),
    ("198.18.0.0/15", "Benchmarking", False),
    ("198.51.100.0/24", "Documentation (TEST-NET-2)", False),
    ("203.0.113.0/24", "Documentation (TEST-NET-3)", False),
    ("240.0.0.0/4", "Reserved", False),
    ("255.255.255.255/32", "Limited Broadcast", False),
)
REGISTRY_6: Final = (
    ("::1/128", "Loopback Address", False),
    ("::/128", "Unspecified Address", False),
    ("::ffff:0:0/96", "IPv4-mapped Address", False),
    ("64:ff9b::/96", "IPv4-IPv6 Translation", True),
    ("64:ff9b:1::/48", "IPv4-IPv6 Translation, local use", False),
    ("100::/64", "Discard-Only Address Block", False),
    ("100:0:0:1::/64", "Dummy IPv6 Prefix", False),
    ("2001::/23", "IETF Protocol Assignments", False),
    ("2001::/32", "TEREDO", None),
    ("2001:1::1/128", "Port Control Protocol Anycast", True),
    ("2001:1::2/128", "Traversal Using Relays around NAT Anycast", True),
    ("2001:1::3/128", "DNS-SD Service Registration Protocol Anycast", True),
    ("2001:2::/48", "Benchmarking", False),
    ("2001:3::/32", "AMT", True),
    ("2001:4:112::/48", "AS112-v6", True),
    ("2001:10::/28", "Deprecated (previously ORCHID)", None),
    ("2001:20::/28", "ORCHIDv2", True),
    ("2001:30::/28", "Drone Remote ID Protocol Entity Tags", True),
    ("2001:db8::/32", "Documentation", False),
    ("2002::/16", "6to4", None),
    ("2620:4f:8000::/48", "Direct Delegation AS112 Service", True),
    ("3fff::/20", "Documentation", False),
    ("5f00::/16", "Segment Routing (SRv6) SIDs", False),
    ("fc00::/7", "Unique-Local", False),
    ("fe80::/10", "Link-Local Unicast", False),
)
#: Registered as global, and answered by whoever is nearest: the gateway of the network that one is in.
NEAREST: Final = frozenset({"192.0.0.9/32", "192.0.0.10/32", "2001:1::1/128", "2001:1::2/128", "2001:1::3/128"})


def ends(block: IPv4Network | IPv6Network) -> set[str]:
    return {str(block[0]), str(block[-1]), str(block[block.num_addresses // 2])}


@pytest.mark.parametrize(("text", "name", "is_reachable"), [*REGISTRY_4, *REGISTRY_6])
def test_only_addresses_that_the_registries_call_global_are_global(
    text: str, name: str, *, is_reachable: bool | None
) -> None:
    block = ip_network(text)
    if text == "64:ff9b::/96":
        block = ip_network("64:ff9b::102:300/120")  # a block of it whose IPv4 addresses are on the internet
    expected = bool(is_reachable) and text not in NEAREST
    assert {address: is_global(ip_address(address)) for address in ends(block)} == dict.fromkeys(
        ends(block), expected
    ), name


@pytest.mark.parametrize(
    "address",
    [
        *("168.63.129.16", "169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "192.80.8.124"),
        *("161.26.0.10", "166.9.1.2", "fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe", "224.0.0.1", "ff0e::1"),
        *("::ffff:8.8.8.8", "::ffff:169.254.169.254", "::8.8.8.8", "::ffff:0:7f00:1", "2002:808:808::1"),
        *("2001:0:808:808::1", "64:ff9b::a9fe:a9fe", "64:ff9b::a00:1", "64:ff9b::a83f:8110", "64:ff9b:1::808:808"),
        *("127.9.9.9", "0.0.0.0", "172.16.0.1", "239.255.255.250", "240.0.0.1", "::", "::1", "::127.0.0.1", "fd00::1"),
        *("2002:7f00:1::", "2001:0:1::", "ff02::1", "2001:db8::1"),
        *("fec0::1", "3ffe::1", "4000::1", "8000::1", "192.88.99.1", "0.1.2.3", "255.255.255.254"),
    ],
)
def test_neighbours_in_public_ranges_and_what_stands_for_other_addresses_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "168.63.129.15", "192.0.1.1", "198.20.0.1", "223.255.255.255", "2606:4700::1111", "2001:200::1"],
)
def test_the_internet_is_public_and_so_is_what_a_translator_makes_of_it(address: str) -> None:
    known = ip_address(address)
    assert is_public(known)
    if known.version == 4:
        assert is_public(IPv6Address(int(IPv6Address("64:ff9b::")) + int(known)))


ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0
eth0\t00204E17\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\t0\t0
eth0\t00007117\t0101A8C0\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
NOBODY, ROUTER = "0" * 32, "fe80" + "0" * 27 + "1"
ROUTES_6 = "".join(
    f"{target:0<32} {length} {'0' * 32} 00 {gateway} 00000400 00000001 00000000 {flags}     eth0\n"
    for target, length, gateway, flags in (
        ("26064700", "40", NOBODY, "00000001"),
        ("", "00", ROUTER, "00000003"),
        ("2620", "30", ROUTER, "00000003"),
        ("2", "03", NOBODY, "00000001"),
    )
)


@pytest.mark.skipif(socket.htons(1) == 1, reason="the tables are written as this machine orders bytes")
def test_the_networks_that_this_machine_is_in_are_its_neighbours_however_public() -> None:
    """Not those behind a gateway, and not the whole internet through a tunnel."""
    assert [str(network) for network in near_networks(ROUTES, ROUTES_6)] == ["23.78.32.0/20", "2606:4700::/64"]


@pytest.mark.skipif(socket.htons(1) == 1, reason="the tables are written as this machine orders bytes")
def test_a_public_address_in_a_network_of_this_machine_is_not_public(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in (("_ROUTES_4", ROUTES), ("_ROUTES_6", ROUTES_6)):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(addresses, name, tmp_path / name)
    assert [is_public(ip_address(each)) for each in ("23.78.33.1", "2606:4700::5", "23.78.48.1", "2606:4700:1::5")] == [
        *(False, False, True, True)
    ]
