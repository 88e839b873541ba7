"""The network of a devbox: what its scenario and its policy make of it, and the way out where that is some hosts."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio.to_thread
import structlog

from orchestrator.service.devboxes.logs import append_setup, entry
from orchestrator.service.sandbox.egress.addresses import Resolver
from orchestrator.service.sandbox.egress.proxy import Egress, EgressVerdict
from orchestrator.service.sandbox.egress.rules import Network, Rules
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import Capability
from orchestrator.service.store import now_ms


def network_of(
    prepared: Prepared, scenario: Network | None, policy: Network | None, capabilities: frozenset[Capability]
) -> Network:
    """What an environment's network, the policy that its scenario names, and that of whoever runs it come to.

    A scenario may have the internet, never the machine's network: only who runs it may open that. Without walls
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


def way_out(network: Network, *, devbox_id: str, output: Path, resolve: Resolver | None) -> Egress | None:
    """The way out of a devbox, None where there is none or the whole network is open."""
    if network.is_open or not (network.is_public or network.hosts):
        return None
    rules = Rules.parse(network.hosts, is_public=network.is_public)
    return Egress(rules, partial(_tell, devbox_id, output), resolve)


async def _tell(devbox_id: str, output: Path, verdict: EgressVerdict, host: str) -> None:
    """A line in the devbox's log; a full disk is no reason to let nobody out."""
    log = structlog.get_logger()
    log.info("egress.first", devbox=devbox_id, host=host, verdict=verdict)
    level = "info" if verdict == "reached" else "warning"
    line = entry("kmsg", now_ms(), level=level, message=f"network: {verdict} {host}")
    try:
        await anyio.to_thread.run_sync(append_setup, output, devbox_id, [line])
    except OSError as error:
        log.warning("egress.not_logged", devbox=devbox_id, error=str(error))
