"""The rows of devboxes: how one is made, moved on and ended, each in a transaction of the store.

An end is recorded by one function, together with everything that hangs on it: `on_end` runs in the same transaction,
so that no run is ever left thinking its devbox lives.
"""

import sqlite3
from collections.abc import Callable

from orchestrator.service.devboxes.launch import Launch
from orchestrator.service.devboxes.requests import DevboxRequest
from orchestrator.service.devboxes.states import End, Status, ended, failure, is_ended, moved
from orchestrator.service.errors import BadRequest
from orchestrator.service.store import DEVBOXES, Document, Store, now_ms

OnEnd = Callable[[sqlite3.Connection, Document], None]


class DevboxRows:
    """The devboxes' table as the fleet uses it."""

    def __init__(self, store: Store) -> None:
        self.on_end: list[OnEnd] = []
        self._store = store

    async def advance(self, devbox_id: str, status: Status, shown: Document) -> Document:
        """Move a devbox on, and add to what its record shows; one that has ended stays as it is."""

        def change(db: sqlite3.Connection) -> Document:
            doc = DEVBOXES.get(db, devbox_id)
            if not is_ended(doc):
                doc = moved(doc, status, at=now_ms()) | shown
                DEVBOXES.put(db, doc)
            return doc

        return await self._store.write(change)

    async def end(self, devbox_id: str, end: End, shown: Document) -> Document:
        """End a devbox, and add to what its record shows; that also where it has ended before."""

        def change(db: sqlite3.Connection) -> Document:
            doc = self.end_in(db, devbox_id, end)
            return DEVBOXES.update(db, devbox_id, shown) if shown else doc

        return await self._store.write(change)

    def end_in(self, db: sqlite3.Connection, devbox_id: str, end: End) -> Document:
        """Idempotent: what has ended stays as it ended. Raises NotFound."""
        doc = DEVBOXES.get(db, devbox_id)
        if is_ended(doc):
            return doc
        doc = ended(doc, end, at=now_ms())
        DEVBOXES.put(db, doc)
        for hook in self.on_end:
            hook(db, doc)
        return doc

    async def end_leftovers(self) -> dict[str, str]:
        """End what an earlier service left alive; returns every devbox's status."""
        end = failure("health_check_failed", "The service ended under it.")

        def change(db: sqlite3.Connection) -> dict[str, str]:
            return {doc["id"]: self.end_in(db, doc["id"], end)["status"] for doc in DEVBOXES.select(db, {})}

        return await self._store.write(change)


def new_devbox(request: DevboxRequest, launch: Launch) -> Document:
    """The row of a devbox that is about to boot."""
    at = now_ms()
    doc: Document = {
        "id": DEVBOXES.new_id(),
        "name": request.name,
        "status": Status.PROVISIONING.value,
        "capabilities": [],
        "create_time_ms": at,
        "launch_parameters": launch.shown,
        "metadata": dict(request.metadata),
        "state_transitions": [
            {"status": status.value, "transition_time_ms": at} for status in (Status.QUEUED, Status.PROVISIONING)
        ],
        "blueprint_id": request.blueprint_id,
        "initiator_type": request.initiator_type,
        "initiator_id": request.initiator_id,
    }
    # Published as null while there is none, unlike what else may be missing.
    return {key: value for key, value in doc.items() if value is not None} | {"end_time_ms": None}


def not_running(devbox_id: str, status: str) -> BadRequest:
    """What a request gets that needs a running devbox."""
    return BadRequest(f"Devbox {devbox_id} is {status}, not running.")
