"""A devbox's network, set by a scenario, its policy and the user."""

from typing import Final

import pytest

from orchestrator.service.devboxes.network import network_of
from orchestrator.service.sandbox.egress.rules import Network
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import Capability

WALLS: Final = frozenset({Capability.EGRESS, Capability.NETWORK_OFF, Capability.NETWORK_ON})
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


def test_without_walls_the_network_is_there_or_not() -> None:
    assert network_of(Prepared(network=True), None, None, frozenset()) == EVERYTHING
    assert network_of(Prepared(hosts=("a.test",)), None, None, frozenset()) == NOTHING
