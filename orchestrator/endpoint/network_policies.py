"""What a devbox may reach, as network policies of the endpoint: found by name or made, once for each kind of need.

The name says what is in it: sweeps that want the same share one, and who loses the race to make it finds the other's.
"""

from collections.abc import Awaitable
from hashlib import sha256
from typing import Final

import anyio
import orjson
import structlog
from runloop_api_client import AsyncRunloop
from runloop_api_client.types import NetworkPolicyView

from orchestrator.core.errors import Conflicted, Refused, Unauthorized, UsageError
from orchestrator.core.records import Needs
from orchestrator.endpoint.calls import patiently

_PAGE: Final = 1000
_FIX: Final = "Leave out --network: then devboxes have what the endpoint and their scenarios give them."


class Policies:
    """The policies that one endpoint has for us."""

    def __init__(self, client: AsyncRunloop) -> None:
        self._client = client
        self._asking = anyio.Lock()
        self._ids: dict[str, str] = {}
        #: Why the endpoint has no policies, once it has said so.
        self._refusal = ""

    async def check(self, needs: Needs) -> None:
        """Raise UsageError if no devbox can have this network; of what agents name, only if it is refused by name."""
        try:
            identity = await self.identity(needs)
        except (Conflicted, Unauthorized) as error:
            raise UsageError(f"The endpoint refuses the network that devboxes need: {error.message}") from None
        if identity is None and needs.is_closed:
            raise UsageError(f"--network none cannot be had of this endpoint: {self._refusal} {_FIX}")
        if identity is None and needs.is_open:
            raise UsageError(f"--network host cannot be had of this endpoint: {self._refusal} {_FIX}")

    async def identity(self, needs: Needs) -> str | None:
        """The id of the policy for these needs; None if they ask for none, or the endpoint has none to give."""
        if not (needs.hosts or needs.is_closed or needs.is_open):
            return None
        hosts = [] if needs.is_closed or needs.is_open else sorted(set(needs.hosts))
        name = _name(hosts, is_open=needs.is_open)
        async with self._asking:
            if name not in self._ids and not self._refusal:
                await self._provide(name, hosts, is_open=needs.is_open)
        return self._ids.get(name)

    async def _provide(self, name: str, hosts: list[str], *, is_open: bool) -> None:
        try:
            policy = await self._find(name) or await self._make(name, hosts, is_open=is_open)
        except (Conflicted, Unauthorized):
            raise
        except Refused as error:
            self._refusal = error.message
            if hosts:  # else somebody insists on what he asked for, and `check` refuses it
                structlog.get_logger().warning("network.as_it_is", hosts=hosts, error=error.message)
            return
        egress = policy.egress
        if egress.allow_all != is_open or sorted(egress.allowed_hostnames) != hosts:
            raise Conflicted(f"network policy {policy.id} ({name}) was changed by somebody; delete it.")
        self._ids[name] = policy.id

    async def _find(self, name: str) -> NetworkPolicyView | None:
        async def walk() -> NetworkPolicyView | None:
            async for policy in self._client.network_policies.list(name=name, limit=_PAGE, include_total_count=False):
                if policy.name == name:
                    return policy
            return None

        return await patiently("looking for a network policy", walk)

    async def _make(self, name: str, hosts: list[str], *, is_open: bool) -> NetworkPolicyView:
        def make() -> Awaitable[NetworkPolicyView]:
            return self._client.network_policies.create(name=name, allow_all=is_open, allowed_hostnames=hosts)

        try:
            return await patiently("making a network policy", make)
        except Conflicted:
            found = await self._find(name)
            if found is None:
                raise
            return found


def _name(hosts: list[str], *, is_open: bool) -> str:
    return f"sweep-{sha256(orjson.dumps([is_open, hosts])).hexdigest()[:16]}"
