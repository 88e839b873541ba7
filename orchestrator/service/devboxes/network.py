"""The network of a devbox: policies as clients make them, what a scenario and a policy come to, and the way out.

Policies are records of the published shape. What the published rules have and no provider here can do (gateways,
mirrors, address ranges) is refused by name: a rule that is stored and not kept would be found out in the morning. A
devbox keeps the policy that it was created with.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import structlog

from orchestrator.core.protocol import DEVBOX_ALIVE
from orchestrator.service.devboxes.output import LogEntry, append_setup
from orchestrator.service.errors import BadRequest, NotSupported
from orchestrator.service.records import EgressRules, NetworkPolicyRecord
from orchestrator.service.sandbox.egress.addresses import Resolver, address_of, is_public
from orchestrator.service.sandbox.egress.proxy import Egress, EgressVerdict
from orchestrator.service.sandbox.egress.rules import LOCALHOST, Network, Rule, Rules, check_hosts, is_address
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import BoxNetwork, Capability
from orchestrator.service.store import DEVBOXES, NETWORK_POLICIES, Filters, ListQuery, Page, Store, now_ms

_FLAGS: Final = ("allow_agent_gateway", "allow_devbox_to_devbox", "allow_mcp_gateway", "allow_runloop_mirrors")
_KEY: Final = "launch_parameters.network_policy_id"
PROXIED: Final = "Devboxes reach the internet by a proxy, for HTTP and HTTPS alone: {}."
UNLIMITED: Final = (
    "devboxes without isolation cannot be kept from the network. "
    "Start the service with isolation, or use a policy with allow_all."
)


class NetworkPolicies:
    """Network policies of the store. `capabilities` are those of the provider that has to keep the rules."""

    def __init__(self, store: Store, capabilities: frozenset[Capability]) -> None:
        self._store = store
        self._capabilities = capabilities

    async def create(self, fields: Mapping[str, Any], key: str | None) -> NetworkPolicyRecord:
        """Create a policy, once for each key.

        Raises BadRequest for a name that is missing or taken and for wrong hosts, NotSupported for other rules.
        """
        egress = self._egress(fields, None)

        def insert(db: sqlite3.Connection) -> NetworkPolicyRecord:
            name, at = fields.get("name"), now_ms()
            if not name:
                raise BadRequest("name: a network policy needs one.")
            _check_name(db, name)
            policy = NetworkPolicyRecord(
                id=NETWORK_POLICIES.new_id(),
                name=name,
                description=fields.get("description"),
                egress=egress,
                create_time_ms=at,
                update_time_ms=at,
            )
            NETWORK_POLICIES.insert(db, policy)
            return policy

        return (await self._store.once(key, NetworkPolicyRecord, insert))[0]

    async def update(self, identity: str, fields: Mapping[str, Any]) -> NetworkPolicyRecord:
        """Replace the fields given. Raises as `create`, and NotFound."""

        def change(db: sqlite3.Connection) -> NetworkPolicyRecord:
            before = NETWORK_POLICIES.get(db, identity)
            name = fields.get("name", before.name)
            if name != before.name:
                _check_name(db, name)
            changes = {"name": name, "description": fields.get("description", before.description)}
            changes |= {"egress": self._egress(fields, before.egress), "update_time_ms": now_ms()}
            return NETWORK_POLICIES.update(db, identity, changes)

        return await self._store.write(change)

    async def retrieve(self, identity: str) -> NetworkPolicyRecord:
        """Raises NotFound."""
        return await self._store.read(lambda db: NETWORK_POLICIES.get(db, identity))

    async def page(self, filters: Filters, query: ListQuery) -> Page[NetworkPolicyRecord]:
        """Raises NotFound for an unknown `starting_after`."""
        return await self._store.read(lambda db: NETWORK_POLICIES.page(db, filters, query))

    async def delete(self, identity: str) -> NetworkPolicyRecord:
        """Return the policy as it was. Raises NotFound, and BadRequest while a devbox has it."""

        def change(db: sqlite3.Connection) -> NetworkPolicyRecord:
            policy = NETWORK_POLICIES.get(db, identity)
            for devbox in DEVBOXES.select(db, {"status": DEVBOX_ALIVE}):
                if devbox.launch_parameters.get("network_policy_id") == identity:
                    raise BadRequest(f"Network policy {identity} is in use by devbox {devbox.id}.")
            NETWORK_POLICIES.delete(db, identity)
            return policy

        return await self._store.write(change)

    def _egress(self, fields: Mapping[str, Any], before: EgressRules | None) -> EgressRules:
        """Put the given `fields` into the rules as they were, checked."""
        for name in (*_FLAGS, "allowed_cidrs"):
            if fields.get(name):
                raise NotSupported(f"{name}: not supported by this service; name hosts in allowed_hostnames.")
        hosts = fields.get("allowed_hostnames", before.allowed_hostnames if before else [])
        try:
            check_hosts(hosts)
        except ValueError as error:
            raise BadRequest(f"allowed_hostnames: {error}.") from None
        allow_all = fields.get("allow_all", before is not None and before.allow_all)
        if not allow_all and Capability.EGRESS not in self._capabilities:
            raise NotSupported(f"A network policy without allow_all: {UNLIMITED}")
        return EgressRules(
            allow_all=allow_all, **dict.fromkeys(_FLAGS, False), allowed_cidrs=[], allowed_hostnames=hosts
        )


def _check_name(db: sqlite3.Connection, name: str) -> None:
    if NETWORK_POLICIES.count(db, {"name": name}):
        raise BadRequest(f"name: there is a network policy named {name!r} already.")


def policy_of(db: sqlite3.Connection, identity: str | None, capabilities: frozenset[Capability]) -> Network | None:
    """Read the policy of a devbox to be, None if it has none.

    Raises BadRequest if there is none of this id, or the provider cannot keep it.
    """
    if not identity:
        return None
    policy = NETWORK_POLICIES.find(db, identity)
    if policy is None:
        raise BadRequest(f"{_KEY}: there is no network policy with id {identity!r}.")
    if policy.egress.allow_all:
        return Network(is_open=Capability.NETWORK_ON in capabilities, is_public=True)
    if Capability.EGRESS not in capabilities:
        raise BadRequest(f"{_KEY}: {UNLIMITED}")
    return Network(hosts=tuple(policy.egress.allowed_hostnames))


def network_of(
    prepared: Prepared, scenario: Network | None, policy: Network | None, capabilities: frozenset[Capability]
) -> Network:
    """Combine an environment's network, the policy that its scenario names, and the client's `policy`.

    A scenario may have the internet, never the machine's network: only the client may open that. Without isolation
    there are no rules to keep: a policy of hosts was refused, and a scenario's mean nothing there.
    """
    network = Network(is_public=prepared.network, hosts=prepared.hosts)
    if scenario is not None:
        network = network.under(replace(scenario, is_open=False, is_public=scenario.is_open or scenario.is_public))
    if policy is not None:
        network = network.under(policy)
    if Capability.EGRESS in capabilities:
        return network
    return Network(is_open=network.is_open or network.is_public)


def box_network(network: Network, capabilities: frozenset[Capability]) -> BoxNetwork:
    """Choose the network of a devbox's boxes; what it does not give is the way out's."""
    if network.is_open:
        return BoxNetwork.HOST
    return BoxNetwork.PUBLIC if network.is_public and Capability.PUBLIC in capabilities else BoxNetwork.NONE


def described(network: Network, given: BoxNetwork) -> str:
    """Name what a devbox reaches: "none", named "hosts", the public hosts by "proxy" or as "public", or as "host"."""
    if given is not BoxNetwork.NONE:
        return given
    return "proxy" if network.is_public else "hosts" if network.hosts else "none"


def way_out(
    network: Network, given: BoxNetwork, *, devbox_id: str, output: Path, resolve: Resolver | None
) -> Egress | None:
    """Make the way out of a devbox to what the network `given` to its boxes does not reach, None if that is nothing."""
    hosts = [host for host in network.hosts if given is BoxNetwork.NONE or _is_near(Rule.parse(host).host)]
    if given is BoxNetwork.HOST or not (hosts or (network.is_public and given is BoxNetwork.NONE)):
        return None
    rules = Rules.parse(hosts, is_public=network.is_public)
    return Egress(rules, partial(_tell, devbox_id, output), resolve)


def _is_near(host: str) -> bool:
    """Tell whether a rule names this machine or its neighbours; where a mere name leads is public by the rules."""
    return host == LOCALHOST or (is_address(host) and not is_public(address_of(host)))


async def _tell(devbox_id: str, output: Path, verdict: EgressVerdict, host: str) -> None:
    """Add a line to the devbox's log. A full disk must not close the way out."""
    log = structlog.get_logger()
    log.info("egress.first", devbox=devbox_id, host=host, verdict=verdict)
    level = "info" if verdict == "reached" else "warning"
    line = LogEntry(level=level, source="kmsg", timestamp_ms=now_ms(), message=f"network: {verdict} {host}")
    try:
        await anyio.to_thread.run_sync(append_setup, output, devbox_id, [line])
    except OSError as error:
        log.warning("egress.not_logged", devbox=devbox_id, error=str(error))
