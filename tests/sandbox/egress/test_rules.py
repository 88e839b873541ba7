"""Network rules, and the winner of two that match."""

from ipaddress import ip_address

import pytest

from orchestrator.service.sandbox.egress.rules import Network, Rule, Rules, known_host, spelled


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
def test_an_invalid_rule_is_refused_with_the_expected_form(text: str) -> None:
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


def test_public_rules_let_any_port_of_any_host_through_but_names_of_this_machine_and_its_site() -> None:
    """The addresses of a name are checked afterwards."""
    rules = Rules.parse(["printer.local:631"], is_public=True)
    assert all(rules.lets(host, port) for host in ("a.test", "1.1.1.1", "10.0.0.1", "::1") for port in (22, 443, 8080))
    local = ("localhost", "a.localhost", "printer.local", "router.home.arpa", "metadata.google.internal", "intranet")
    assert [host for host in local if rules.lets(host, 443)] == []
    assert rules.lets("printer.local", 631), "it is named"


def test_only_hosts_that_the_machines_user_named_may_lead_anywhere() -> None:
    rules = Rules.parse(["a.test"], trusted=["mirror.test:8080", "*.corp.test"])
    assert [rules.trusts(*each) for each in (("mirror.test", 8080), ("x.corp.test", 443))] == [True, True]
    assert [rules.trusts(*each) for each in (("mirror.test", 443), ("a.test", 443))] == [False, False]
    assert rules.lets("mirror.test", 8080)


OPEN, NOTHING, SOME = Network(is_open=True), Network(), Network(hosts=("a.test",))
PUBLIC = Network(is_public=True)


@pytest.mark.parametrize(
    ("scenario", "policy", "expected"),
    [
        (OPEN, NOTHING, NOTHING),
        (SOME, NOTHING, NOTHING),
        (NOTHING, OPEN, OPEN),
        (NOTHING, SOME, SOME),
        (SOME, Network(hosts=("b.test", "a.test")), Network(hosts=("a.test", "b.test"))),
        (OPEN, SOME, Network(is_open=True, hosts=("a.test",))),
        (PUBLIC, NOTHING, NOTHING),
        (PUBLIC, OPEN, OPEN),
        (PUBLIC, SOME, Network(is_public=True, hosts=("a.test",))),
        (SOME, PUBLIC, Network(is_public=True, hosts=("a.test",))),
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
