"""Network policies as clients make them: documents of the published shape, and what they mean for a devbox.

What the published rules have and no provider here can do (gateways, mirrors, address ranges) is refused by name: a
rule that is stored and not kept would be found out in the morning. A devbox keeps the policy that it was created with.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from orchestrator.service.devboxes.states import TERMINAL, Status
from orchestrator.service.errors import BadRequest, NotSupported
from orchestrator.service.sandbox.egress.rules import Network, check_hosts
from orchestrator.service.sandbox.provider import Capability
from orchestrator.service.store import (
    DEVBOXES,
    NETWORK_POLICIES,
    Document,
    Filters,
    ListQuery,
    Page,
    Store,
    now_ms,
    once,
)

_FLAGS: Final = ("allow_agent_gateway", "allow_devbox_to_devbox", "allow_mcp_gateway", "allow_runloop_mirrors")
_LIVING: Final = tuple(status.value for status in Status if status not in TERMINAL)
_KEY: Final = "launch_parameters.network_policy_id"
UNLIMITED: Final = (
    "devboxes without isolation cannot be kept from the network. "
    "Start the service with isolation, or use a policy with allow_all."
)


class NetworkPolicies:
    """Documents in, documents out. `capabilities` are those of the provider that has to keep the rules."""

    def __init__(self, store: Store, capabilities: frozenset[Capability]) -> None:
        self._store = store
        self._capabilities = capabilities

    async def create(self, fields: Mapping[str, Any], key: str | None) -> Document:
        """Raises BadRequest for a name that is missing or taken and for wrong hosts, NotSupported for other rules."""
        egress = self._egress(fields, {})

        def change(db: sqlite3.Connection) -> Document:
            return once(db, key, lambda: _insert(db, fields, egress))[0]

        return await self._store.write(change)

    async def update(self, identity: str, fields: Mapping[str, Any]) -> Document:
        """Replace the fields given. Raises as `create`, and NotFound."""

        def change(db: sqlite3.Connection) -> Document:
            before = NETWORK_POLICIES.get(db, identity)
            shown = {name: fields[name] for name in ("name", "description") if name in fields}
            if shown.get("name", before["name"]) != before["name"]:
                _check_name(db, shown["name"])
            egress = self._egress(fields, before["egress"])
            return NETWORK_POLICIES.update(db, identity, {**shown, "egress": egress, "update_time_ms": now_ms()})

        return await self._store.write(change)

    async def retrieve(self, identity: str) -> Document:
        """Raises NotFound."""
        return await self._store.read(lambda db: NETWORK_POLICIES.get(db, identity))

    async def page(self, filters: Filters, query: ListQuery) -> Page:
        return await self._store.read(lambda db: NETWORK_POLICIES.page(db, filters, query))

    async def delete(self, identity: str) -> Document:
        """The policy as it was. Raises NotFound, and BadRequest while a devbox has it."""

        def change(db: sqlite3.Connection) -> Document:
            doc = NETWORK_POLICIES.get(db, identity)
            for devbox in DEVBOXES.select(db, {"status": _LIVING}):
                if devbox["launch_parameters"].get("network_policy_id") == identity:
                    raise BadRequest(f"Network policy {identity} is in use by devbox {devbox['id']}.")
            NETWORK_POLICIES.delete(db, identity)
            return doc

        return await self._store.write(change)

    def _egress(self, fields: Mapping[str, Any], before: Mapping[str, Any]) -> Document:
        """The rules with what is given, checked."""
        for name in (*_FLAGS, "allowed_cidrs"):
            if fields.get(name):
                raise NotSupported(f"{name}: not supported by this service; name hosts in allowed_hostnames.")
        egress = {
            "allow_all": fields.get("allow_all", before.get("allow_all", False)),
            **dict.fromkeys(_FLAGS, False),
            "allowed_cidrs": [],
            "allowed_hostnames": fields.get("allowed_hostnames", before.get("allowed_hostnames", [])),
        }
        try:
            check_hosts(egress["allowed_hostnames"])
        except ValueError as error:
            raise BadRequest(f"allowed_hostnames: {error}.") from None
        if not egress["allow_all"] and Capability.EGRESS not in self._capabilities:
            raise NotSupported(f"A network policy without allow_all: {UNLIMITED}")
        return egress


def _insert(db: sqlite3.Connection, fields: Mapping[str, Any], egress: Document) -> Document:
    name, at = fields.get("name"), now_ms()
    if not name:
        raise BadRequest("name: a network policy needs one.")
    _check_name(db, name)
    described = {"description": fields["description"]} if "description" in fields else {}
    doc = {"id": NETWORK_POLICIES.new_id(), "name": name, **described, "egress": egress}
    doc |= {"create_time_ms": at, "update_time_ms": at}
    NETWORK_POLICIES.insert(db, doc)
    return doc


def _check_name(db: sqlite3.Connection, name: str) -> None:
    if NETWORK_POLICIES.count(db, {"name": name}):
        raise BadRequest(f"name: there is a network policy named {name!r} already.")


def policy_of(db: sqlite3.Connection, identity: str | None, capabilities: frozenset[Capability]) -> Network | None:
    """What the policy of a devbox to be means, None if it has none.

    Raises BadRequest if there is none of this id, or the provider cannot keep it.
    """
    if not identity:
        return None
    doc = NETWORK_POLICIES.find(db, identity)
    if doc is None:
        raise BadRequest(f"{_KEY}: there is no network policy with id {identity!r}.")
    if doc["egress"]["allow_all"]:
        return Network(is_open=True)
    if Capability.EGRESS not in capabilities:
        raise BadRequest(f"{_KEY}: {UNLIMITED}")
    return Network(hosts=tuple(doc["egress"]["allowed_hostnames"]))
