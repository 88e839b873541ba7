"""The life of a devbox as data: legal moves between its statuses, its row made, moved on and ended, and its changes.

An end is recorded by one function, together with everything that hangs on it: the devbox's executions are completed,
and `on_end` runs, in the same transaction, so that no run is ever left thinking its devbox lives.

Changes are waited for with an event for each thing and change, which only its waiters keep. Take the event first, then
look at the thing, then wait for the event: a change between the looks is never missed. Why not a condition for each
thing: it would have to be removed again; an event goes with its last waiter.
"""

import sqlite3
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

import anyio
from msgspec.structs import replace

from orchestrator.core.errors import InternalError
from orchestrator.core.protocol import DEVBOX_DEAD, DevboxStatus
from orchestrator.service.devboxes.requests import DevboxRequest, Launch
from orchestrator.service.errors import BadRequest
from orchestrator.service.records import DevboxRecord, ExecutionRecord, ExecutionStatus, Transition
from orchestrator.service.store import DEVBOXES, EXECUTIONS, Store, now_ms

KILLED: Final = 137
"""The exit status of a command that was ended by SIGKILL, or with its devbox."""
MOVES: Final[Mapping[DevboxStatus, frozenset[DevboxStatus]]] = {
    DevboxStatus.QUEUED: frozenset({DevboxStatus.PROVISIONING}) | DEVBOX_DEAD,
    DevboxStatus.PROVISIONING: frozenset({DevboxStatus.INITIALIZING}) | DEVBOX_DEAD,
    DevboxStatus.INITIALIZING: frozenset({DevboxStatus.RUNNING}) | DEVBOX_DEAD,
    DevboxStatus.RUNNING: frozenset({DevboxStatus.SUSPENDING}) | DEVBOX_DEAD,
    DevboxStatus.SUSPENDING: frozenset({DevboxStatus.SUSPENDED}) | DEVBOX_DEAD,
    DevboxStatus.SUSPENDED: frozenset({DevboxStatus.RESUMING}) | DEVBOX_DEAD,
    DevboxStatus.RESUMING: frozenset({DevboxStatus.RUNNING, DevboxStatus.SUSPENDED}) | DEVBOX_DEAD,
}

OnEnd = Callable[[sqlite3.Connection, DevboxRecord], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of a devbox: its last status, the published reason, words for people, and the key of a failed install.

    `is_of_environment` means that what it starts from cannot be built, for no devbox at all. `is_by_agent` means that
    it broke from inside while its agent was there.
    """

    status: DevboxStatus
    reason: str
    message: str | None = None
    install: str | None = None
    is_of_environment: bool = False
    is_by_agent: bool = False


def failure(reason: str, message: str, *, install: str | None = None) -> End:
    return End(status=DevboxStatus.FAILURE, reason=reason, message=message, install=install)


def shutdown(reason: str, message: str | None = None) -> End:
    return End(status=DevboxStatus.SHUTDOWN, reason=reason, message=message)


def failure_reason(how: str) -> str:
    """Return the published reason that fits a box's own account of its death, or of why it could not be booted."""
    words = how.lower()
    if "out of memory" in words or "oom" in words.split():
        return "out_of_memory"
    if "out of disk" in words or "no space left" in words:
        return "out_of_disk"
    return "health_check_failed"


def moved(devbox: DevboxRecord, status: DevboxStatus, *, at: int, reason: str | None = None) -> DevboxRecord:
    """Return the devbox with a new status, since `at` (milliseconds). Raises InternalError for an illegal move."""
    if status not in MOVES.get(devbox.status, frozenset()):
        raise InternalError(f"Devbox {devbox.id} cannot go from {devbox.status} to {status}.")
    transition = Transition(status=status, transition_time_ms=at, failure_reason=reason)
    return replace(devbox, status=status, state_transitions=(*devbox.state_transitions, transition))


def ended(devbox: DevboxRecord, end: End, *, at: int) -> DevboxRecord:
    """Return a devbox that has just ended. Raises InternalError if it had ended before."""
    common = {
        "end_time_ms": at,
        "end_message": end.message,
        "failed_install": end.install,
        "has_failed_environment": end.is_of_environment,
        "broken_by_agent": end.is_by_agent,
    }
    if end.status is DevboxStatus.SHUTDOWN:
        return replace(moved(devbox, end.status, at=at), **common, shutdown_reason=end.reason)
    failed = moved(devbox, end.status, at=at, reason=end.reason)
    return replace(failed, **common, failure_reason=end.reason, failure_message=end.message)


def completed(execution: ExecutionRecord, status: int, note: str | None) -> ExecutionRecord:
    """Return an execution that has just ended with an exit status."""
    ended_ms = now_ms()
    return replace(execution, status=ExecutionStatus.COMPLETED, exit_status=status, ended_ms=ended_ms, note=note)


def not_running(devbox_id: str, status: str) -> BadRequest:
    """Make the answer to a request that needs a running devbox."""
    return BadRequest(f"Devbox {devbox_id} is {status}, not running.")


def new_devbox(request: DevboxRequest, launch: Launch) -> DevboxRecord:
    """Make the record of a devbox that is about to boot."""
    at = now_ms()
    return DevboxRecord(
        id=DEVBOXES.new_id(),
        name=request.name,
        status=DevboxStatus.PROVISIONING,
        capabilities=[],
        create_time_ms=at,
        end_time_ms=None,
        launch_parameters=launch.shown,
        metadata=request.metadata,
        state_transitions=[
            Transition(status=status, transition_time_ms=at)
            for status in (DevboxStatus.QUEUED, DevboxStatus.PROVISIONING)
        ],
        blueprint_id=request.blueprint_id,
        snapshot_id=request.snapshot_id,
        initiator_type=request.initiator_type,
        initiator_id=request.initiator_id,
    )


class DevboxRows:
    """The devboxes' table as the fleet uses it."""

    def __init__(self, store: Store, on_end: OnEnd) -> None:
        self._store = store
        self._on_end = on_end

    async def advance(self, devbox_id: str, status: DevboxStatus, shown: Mapping[str, Any]) -> DevboxRecord:
        """Move a devbox on, and add to what its record shows; one that has ended stays as it is."""

        def change(db: sqlite3.Connection) -> DevboxRecord:
            devbox = DEVBOXES.get(db, devbox_id)
            if not devbox.is_ended:
                devbox = replace(moved(devbox, status, at=now_ms()), **shown)
                DEVBOXES.put(db, devbox)
            return devbox

        return await self._store.write(change)

    async def end(self, devbox_id: str, end: End, shown: Mapping[str, Any]) -> DevboxRecord:
        """End a devbox, and add to what its record shows; that also where it has ended before."""

        def change(db: sqlite3.Connection) -> DevboxRecord:
            devbox = self.end_in(db, devbox_id, end)
            return DEVBOXES.update(db, devbox_id, shown) if shown else devbox

        return await self._store.write(change)

    def end_in(self, db: sqlite3.Connection, devbox_id: str, end: End) -> DevboxRecord:
        """End a devbox and what hangs on it. Idempotent: what has ended stays as it ended. Raises NotFound."""
        devbox = DEVBOXES.get(db, devbox_id)
        if devbox.is_ended:
            return devbox
        devbox = ended(devbox, end, at=now_ms())
        DEVBOXES.put(db, devbox)
        for execution in EXECUTIONS.select(db, {"devbox_id": devbox_id}):
            if execution.status is not ExecutionStatus.COMPLETED:
                note = f"The devbox ended under it: {devbox.end_message or devbox.status}"
                EXECUTIONS.put(db, completed(execution, KILLED, note))
        self._on_end(db, devbox)
        return devbox

    async def end_leftovers(self) -> dict[str, DevboxStatus]:
        """End what an earlier service left alive; return every devbox's status."""
        end = failure("health_check_failed", "The service ended under it.")

        def change(db: sqlite3.Connection) -> dict[str, DevboxStatus]:
            return {devbox.id: self.end_in(db, devbox.id, end).status for devbox in DEVBOXES.select(db, {})}

        return await self._store.write(change)


class ChangeEvents:
    """Events of changes; for the event loop's thread only."""

    def __init__(self) -> None:
        self._events: WeakValueDictionary[Hashable, anyio.Event] = WeakValueDictionary()

    def next(self, key: Hashable) -> anyio.Event:
        """Return the event of the next change of a thing."""
        event = self._events.get(key)
        if event is None:
            event = self._events[key] = anyio.Event()
        return event

    def announce(self, key: Hashable) -> None:
        """Wake all who wait for this thing."""
        event = self._events.pop(key, None)
        if event is not None:
            event.set()
