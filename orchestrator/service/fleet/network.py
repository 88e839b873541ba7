"""The network of a devbox: what its scenario and its policy make of it, and the way out where that is some hosts."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import anyio.to_thread
import structlog

from orchestrator.service.devboxes.contract import Capability
from orchestrator.service.devboxes.prepared import Prepared
from orchestrator.service.egress.addresses import Resolver
from orchestrator.service.egress.proxy import Egress
from orchestrator.service.egress.rules import Network, Rules
from orchestrator.service.egress.tally import Verdict
from orchestrator.service.fleet.logs import append_setup, entry
from orchestrator.service.store import now_ms


def network_of(prepared: Prepared, policies: Iterable[Network], capabilities: frozenset[Capability]) -> Network:
    """Without walls there are no rules to keep: a policy of hosts was refused, and a scenario's mean nothing there."""
    network = Network(is_open=prepared.network, hosts=prepared.hosts)
    for policy in policies:
        network = network.under(policy)
    return network if Capability.EGRESS in capabilities else Network(is_open=network.is_open)


def way_out(network: Network, *, devbox_id: str, output: Path, resolve: Resolver | None) -> Egress | None:
    """The way out of a devbox, None where there is none or the whole network is open."""
    if network.is_open or not network.hosts:
        return None
    return Egress(Rules.parse(network.hosts), partial(_tell, devbox_id, output), resolve)


async def _tell(devbox_id: str, output: Path, verdict: Verdict, host: str) -> None:
    """A line in the devbox's log; a full disk is no reason to let nobody out."""
    log = structlog.get_logger()
    log.info("egress.first", devbox=devbox_id, host=host, verdict=verdict)
    level = "info" if verdict == "reached" else "warning"
    line = entry("kmsg", now_ms(), level=level, message=f"network: {verdict} {host}")
    try:
        await anyio.to_thread.run_sync(append_setup, output, devbox_id, [line])
    except OSError as error:
        log.warning("egress.not_logged", devbox=devbox_id, error=str(error))
