"""The life of a devbox as data: its statuses as published, the legal moves between them, and the one move function.

A provider here boots and ends devboxes and does no more, so nothing leads to `suspending`, `suspended` or `resuming`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from orchestrator.core.errors import InternalError
from orchestrator.service.store import Document


class Status(StrEnum):
    """Every status that the published protocol knows."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    PROVISIONING = "provisioning"
    INITIALIZING = "initializing"
    RUNNING = "running"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESUMING = "resuming"
    FAILURE = "failure"
    SHUTDOWN = "shutdown"


TERMINAL: Final = frozenset({Status.FAILURE, Status.SHUTDOWN})
MOVES: Final[Mapping[Status, frozenset[Status]]] = {
    Status.QUEUED: frozenset({Status.PROVISIONING}) | TERMINAL,
    Status.PROVISIONING: frozenset({Status.INITIALIZING}) | TERMINAL,
    Status.INITIALIZING: frozenset({Status.RUNNING}) | TERMINAL,
    Status.RUNNING: TERMINAL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a devbox ended: its last status, the published reason, words for people, and the key of a failed install.

    `is_by_agent` means that it broke while its agent was there, and nobody outside did it.
    """

    status: Status
    reason: str
    message: str | None = None
    install: str | None = None
    is_by_agent: bool = False


def failure(reason: str, message: str, *, install: str | None = None) -> End:
    return End(status=Status.FAILURE, reason=reason, message=message, install=install)


def shutdown(reason: str, message: str | None = None) -> End:
    return End(status=Status.SHUTDOWN, reason=reason, message=message)


def failure_reason(how: str) -> str:
    """The published reason that fits a box's own account of its death, or of why it could not be booted."""
    words = how.lower()
    if "out of memory" in words or "oom" in words.split():
        return "out_of_memory"
    if "out of disk" in words or "no space left" in words:
        return "out_of_disk"
    return "health_check_failed"


def is_ended(doc: Document) -> bool:
    return doc["status"] in TERMINAL


def moved(doc: Document, status: Status, *, at: int) -> Document:
    """The document with its new status, since `at` (milliseconds). Raises InternalError for an illegal move."""
    if status not in MOVES.get(Status(doc["status"]), frozenset()):
        raise InternalError(f"Devbox {doc['id']} cannot go from {doc['status']} to {status.value}.")
    transition = {"status": status.value, "transition_time_ms": at}
    return {**doc, "status": status.value, "state_transitions": [*doc["state_transitions"], transition]}


def ended(doc: Document, end: End, *, at: int) -> Document:
    """The document of a devbox that has just ended. Raises InternalError if it had ended before."""
    doc = moved(doc, end.status, at=at) | {"end_time_ms": at}
    if end.message is not None:
        doc["_failure"] = end.message
    if end.install is not None:
        doc["failed_install"] = end.install
    if end.is_by_agent:
        doc["broken_by_agent"] = True
    if end.status is Status.SHUTDOWN:
        return doc | {"shutdown_reason": end.reason}
    doc["state_transitions"][-1]["failure_reason"] = end.reason
    return doc | {"failure_reason": end.reason, "failure_message": end.message}
