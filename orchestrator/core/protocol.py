"""Words that runner and service share: states of runs and devboxes, and kinds of isolation, scoring and locks."""

from enum import StrEnum
from typing import Final, Literal, Self


class RunState(StrEnum):
    """State of a scenario run."""

    RUNNING = "running"
    SCORING = "scoring"
    SCORED = "scored"
    COMPLETED = "completed"
    CANCELED = "canceled"
    TIMEOUT = "timeout"
    FAILED = "failed"


class BenchmarkRunState(StrEnum):
    """State of a benchmark run."""

    RUNNING = "running"
    COMPLETED = "completed"
    CANCELED = "canceled"
    FAILED = "failed"


class DevboxStatus(StrEnum):
    """Status of a devbox."""

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


class Isolation(StrEnum):
    """Providers of devboxes, by their isolation from this machine; `meaning` is for people.

    `service.sandbox.providers` has the provider of each word.
    """

    meaning: str

    def __new__(cls, word: str, meaning: str = "") -> Self:
        isolation = str.__new__(cls, word)
        isolation._value_, isolation.meaning = word, meaning
        return isolation

    LOCAL = "local", "sandboxes"
    NONE = "none", "plain processes without any isolation"

    @classmethod
    def _missing_(cls, value: object) -> "Isolation | None":
        """Read the spelling of older versions of the service."""
        return cls.NONE if value == "process" else None


class ScoringMode(StrEnum):
    """The place where scorers run."""

    SEPARATE = "separate"
    """In a fresh box of the environment, with what may cross."""
    SHARED = "shared"
    """In a new box over the same files."""
    LIVE = "live"
    """In the agent's box as it is."""


#: Protection of a folder from a second process: see `common.locks`.
LockKind = Literal["file", "none"]
#: The home of a devbox's user, where its view names no other.
HOME: Final = "/home/user"
#: The scenario has its result, or was declared done without one.
RUN_RESULT: Final = frozenset({RunState.SCORED, RunState.COMPLETED})
RUN_ALIVE: Final = frozenset({RunState.RUNNING, RunState.SCORING, RunState.SCORED})
DEVBOX_BOOTING: Final = frozenset(
    {
        DevboxStatus.QUEUED,
        DevboxStatus.SCHEDULED,
        DevboxStatus.PROVISIONING,
        DevboxStatus.INITIALIZING,
        DevboxStatus.RESUMING,
    }
)
DEVBOX_DEAD: Final = frozenset({DevboxStatus.FAILURE, DevboxStatus.SHUTDOWN})
DEVBOX_ALIVE: Final = tuple(status for status in DevboxStatus if status not in DEVBOX_DEAD)
