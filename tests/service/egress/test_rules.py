"""What a rule lets through, and who wins where two say something."""

from ipaddress import ip_address

import pytest

from orchestrator.service.egress.addresses import is_public
from orchestrator.service.egress.rules import Network, Rule, Rules, known_host, spelled


@pytest.mark.parametrize(
    ("rule", "host", "port", "is_let"),
    [
        ("model.test", "model.test", 443, True),
        ("model.test", "model.test", 80, True),
        ("Model.TEST.", "model.test", 443, True),
        ("model.test", "model.test", 8080, False),
        ("model.test", "a.model.test", 443, False),
        ("model.test:8080", "model.test", 8080, True),
        ("model.test:8080", "model.test", 443, False),
        ("*.model.test", "a.model.test", 443, True),
        ("*.model.test", "a.b.model.test", 80, True),
        ("*.model.test", "model.test", 443, False),
        ("*.model.test", "badmodel.test", 443, False),
        ("*.model.test:8443", "a.model.test", 8443, True),
        ("*.1", "10.0.0.1", 443, False),
        ("127.0.0.1:8765", "127.0.0.1", 8765, True),
        ("[::1]:8765", "::1", 8765, True),
        ("[0:0::1]:8765", "::1", 8765, True),
    ],
)
def test_a_rule_lets_its_host_and_ports_through(rule: str, host: str, port: int, *, is_let: bool) -> None:
    assert Rule.parse(rule).lets(host, port) is is_let


@pytest.mark.parametrize(
    "text",
    [
        *("", "*", "*.", "http://model.test", "model.test/path", "model.test:", "model.test:x", "model.test:70000"),
        *("model.test:0", "a b", "-a.test", "a..b", "*.127.0.0.1", "::1", "a.*.test", "model.test:80:80", "x" * 300),
        *("*.[::1]", "user@model.test", "möbel.test", "a\nb"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a host: write name, \*\.name|a port is a number"):
        Rule.parse(text)


def test_an_address_is_named_by_itself_or_as_localhost() -> None:
    rules = Rules.parse(["10.0.0.5:443", "localhost:8765", "*.test", "model.test"])
    assert rules.names(ip_address("10.0.0.5"), 443)
    assert rules.names(ip_address("127.0.0.1"), 8765)
    assert rules.names(ip_address("::1"), 8765)
    assert not rules.names(ip_address("10.0.0.5"), 80)
    assert not rules.names(ip_address("127.0.0.1"), 443)
    assert not rules.names(ip_address("10.0.0.6"), 443)


def test_named_ports_of_loopback_are_to_be_had_straight() -> None:
    rules = Rules.parse(["127.0.0.1:8765", "localhost:9000", "127.0.0.1", "10.0.0.5:9001", "[::1]:9002", "a.test:9003"])
    assert rules.straight == {8765: "127.0.0.1", 9000: "localhost"}


OPEN, NOTHING, SOME = Network(is_open=True), Network(), Network(hosts=("a.test",))


@pytest.mark.parametrize(
    ("scenario", "policy", "expected"),
    [
        (OPEN, NOTHING, NOTHING),
        (SOME, NOTHING, NOTHING),
        (NOTHING, OPEN, OPEN),
        (NOTHING, SOME, SOME),
        (SOME, Network(hosts=("b.test", "a.test")), Network(hosts=("a.test", "b.test"))),
        (OPEN, SOME, Network(is_open=True, hosts=("a.test",))),
    ],
)
def test_a_policy_of_nothing_wins_and_hosts_are_added(scenario: Network, policy: Network, expected: Network) -> None:
    assert scenario.under(policy) == expected


def test_a_host_is_compared_in_one_spelling() -> None:
    assert [known_host(each) for each in ("A.Test.", "0::1", "127.0.0.1", "a_b.test", "a/b", "")] == [
        *("a.test", "::1", "127.0.0.1", "a_b.test", "", "")
    ]
    assert [spelled("a.test", 443), spelled("a.test", 8080), spelled("::1", 8080)] == [
        "a.test",
        "a.test:8080",
        "[::1]:8080",
    ]


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::1"])
def test_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1"),
        *("169.254.169.254", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *("::", "::1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"),
        *("2002:7f00:1::", "2001:0:1::", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
    ],
)
def test_this_machine_its_neighbours_and_what_stands_for_them_are_not(address: str) -> None:
    assert not is_public(ip_address(address))
