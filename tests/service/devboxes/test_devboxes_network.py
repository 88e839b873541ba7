"""A devbox's network, set by a scenario, its policy and the user."""

from pathlib import Path
from typing import Final

import pytest

from orchestrator.service.devboxes.network import box_network, described, network_of, way_out
from orchestrator.service.sandbox.egress.rules import Network, Rules
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import BoxNetwork, Capability

WALLS: Final = frozenset({Capability.EGRESS, Capability.NETWORK_OFF, Capability.NETWORK_ON})
PUBLIC: Final = frozenset({Capability.PUBLIC})
NO_MORE: Final = frozenset[Capability]()
EVERYTHING: Final = Network(is_open=True)
INTERNET: Final = Network(is_public=True)
NOTHING: Final = Network()


@pytest.mark.parametrize(
    ("prepared", "scenario", "policy", "expected"),
    [
        (Prepared(), None, None, NOTHING),
        (Prepared(network=True), None, None, INTERNET),
        (Prepared(), EVERYTHING, None, INTERNET),
        (Prepared(network=True), NOTHING, None, NOTHING),
        (Prepared(network=True), EVERYTHING, NOTHING, NOTHING),
        (Prepared(network=True), None, EVERYTHING, EVERYTHING),
        (
            Prepared(network=True, hosts=("a.test",)),
            None,
            Network(hosts=("b.test",)),
            Network(is_public=True, hosts=("a.test", "b.test")),
        ),
    ],
)
def test_a_scenario_gets_the_internet_at_most_and_only_who_runs_it_opens_the_machines_network(
    prepared: Prepared, scenario: Network | None, policy: Network | None, expected: Network
) -> None:
    assert network_of(prepared, scenario, policy, WALLS) == expected


@pytest.mark.parametrize(
    ("network", "more", "given", "described_as", "proxied"),
    [
        (NOTHING, PUBLIC, BoxNetwork.NONE, "none", None),
        (Network(hosts=("a.test",)), PUBLIC, BoxNetwork.NONE, "hosts", ["a.test"]),
        (INTERNET, PUBLIC, BoxNetwork.PUBLIC, "public", None),
        (INTERNET, NO_MORE, BoxNetwork.NONE, "proxy", []),
        (EVERYTHING, PUBLIC, BoxNetwork.HOST, "host", None),
        (Network(is_public=True, hosts=("a.test", "1.1.1.1")), PUBLIC, BoxNetwork.PUBLIC, "public", None),
        (
            Network(is_public=True, hosts=("a.test", "10.0.0.9:80")),
            PUBLIC,
            BoxNetwork.PUBLIC,
            "public",
            ["10.0.0.9:80"],
        ),
        (Network(is_public=True, hosts=("localhost:9",)), PUBLIC, BoxNetwork.PUBLIC, "public", ["localhost:9"]),
        (Network(is_public=True, hosts=("localhost:9",)), NO_MORE, BoxNetwork.NONE, "proxy", ["localhost:9"]),
    ],
)
def test_the_proxy_serves_for_what_the_boxes_own_network_does_not_reach(
    network: Network, more: frozenset[Capability], given: BoxNetwork, described_as: str, proxied: list[str] | None
) -> None:
    chosen = box_network(network, WALLS | more)
    egress = way_out(network, chosen, devbox_id="d", output=Path(), resolve=None)
    assert (chosen, described(network, chosen)) == (given, described_as)
    expected = None if proxied is None else Rules.parse(proxied, is_public=network.is_public)
    assert (None if egress is None else egress._rules) == expected


def test_without_walls_the_network_is_there_or_not() -> None:
    assert network_of(Prepared(network=True), None, None, frozenset()) == EVERYTHING
    assert network_of(Prepared(hosts=("a.test",)), None, None, frozenset()) == NOTHING
