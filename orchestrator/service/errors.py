"""Answers of the service that are not a result.

    ServiceError
    ├── SandboxError 400    a box that cannot do it, or died: the thing is in a state that forbids the request
    ├── BadRequest 400 · NotFound 404 · NotSupported 405 · WaitExpired 408 · Conflict 409
    ├── Unwritable 503      its state cannot be written now
    └── Away 503            a folder that it serves is not there now

Each kind carries its HTTP status.
"""

from typing import ClassVar

from orchestrator.core.errors import SweepError


class ServiceError(SweepError):
    """An answer of the service that is not a result."""

    status: ClassVar[int] = 500


class SandboxError(ServiceError):
    """A box could not be started, or ended under what was asked of it; the message says why."""

    status = 400


class BadRequest(ServiceError):
    """The request cannot be understood, or the thing is in a state that forbids it."""

    status = 400


class NotFound(ServiceError):
    """No such thing here."""

    status = 404


class NotSupported(ServiceError):
    """This service does not do that."""

    status = 405


class WaitExpired(ServiceError):
    """A long-poll's time is over and nothing happened."""

    status = 408


class Conflict(ServiceError):
    """Another request or a change stands in the way."""

    status = 409


class Unwritable(ServiceError):
    """The state of the service cannot be written."""

    status = 503


class Away(ServiceError):
    """A folder of benchmarks is not there, for now."""

    status = 503
