"""Words that runner and service share: states of runs and devboxes, kinds of isolation, scoring and locks, mirrors."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, Self
from urllib.parse import urlsplit


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


class DiskLimit(StrEnum):
    """What a devbox meets at the limit of its disk; `meaning` is for people."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Self:
        limit = str.__new__(cls, word)
        limit._value_, limit.meaning = word, meaning
        return limit

    WATCHED = "watched", "it is ended"
    HARD = "hard", "its disk is full (needs root)"


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


_REGISTRY: Final = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Another place to ask for the images of `registry`: the base address `url`, without `/v2`."""

    registry: str
    url: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `docker.io=http://127.0.0.1:5000`. Raises ValueError with the form that is expected."""
        registry, _, url = text.partition("=")
        parts = urlsplit(url)
        if not _REGISTRY.fullmatch(registry) or parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{text!r} is not a mirror. Write for example docker.io=https://mirror.example:5000")
        if parts.username or parts.query or parts.fragment:
            raise ValueError(f"the mirror of {registry} has a user, a query or a fragment in its address. Leave it out")
        return cls(registry=registry, url=url.rstrip("/"))
