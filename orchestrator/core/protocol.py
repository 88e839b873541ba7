"""Words that runner and service share: states of runs and devboxes, kinds of isolation, mirrors, what agents get."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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


class Described(StrEnum):
    """A word of a fixed set; `meaning` is for people."""

    meaning: str

    def __new__(cls, word: str, meaning: str = "") -> Self:
        member = str.__new__(cls, word)
        member._value_, member.meaning = word, meaning
        return member


class Isolation(Described):
    """Providers of devboxes, by their isolation from this machine.

    `service.sandbox.providers` has the provider of each word.
    """

    LOCAL = "local", "sandboxes"
    NONE = "none", "plain processes without any isolation"

    @classmethod
    def _missing_(cls, value: object) -> "Isolation | None":
        """Read the spelling of older versions of the service."""
        return cls.NONE if value == "process" else None


class DiskLimit(Described):
    """What a devbox meets at the limit of its disk."""

    WATCHED = "watched", "it is ended"
    HARD = "hard", "its disk is full (needs root)"


class ScoringMode(Described):
    """The place where scorers run."""

    SEPARATE = "separate", "in a fresh environment, with what may cross from the agent"
    SHARED = "shared", "in a new devbox, over the agent's files"
    LIVE = "live", "in the agent's devbox, as it was left"


class RewardStrategy(StrEnum):
    """How the rewards of several steps become those of the whole."""

    MEAN = "mean"
    """By name the mean of all steps that were judged; a step without a reward of that name counts 0."""
    FINAL = "final"
    """Those of the last step that was begun."""


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


#: A variable of whoever runs a scenario, in the middle of a text: ${NAME}, or with a default ${NAME:-default}.
PLACEHOLDER: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class McpTransport(StrEnum):
    """The way to a server of the Model Context Protocol."""

    STDIO = "stdio"
    """The agent's program starts it in the devbox."""
    SSE = "sse"
    STREAMABLE_HTTP = "streamable-http"


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """A server of the Model Context Protocol, whose tools an agent gets.

    With stdio it is the program `command` with `args`; else it is at `url`, and each request to it has `headers`, in
    which variables may stand (`PLACEHOLDER`).
    """

    name: str
    transport: McpTransport
    url: str = ""
    command: str = ""
    args: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditionalContext:
    """What a scenario gives its agent beside the problem statement; on the wire, `input_context.additional_context`.

    `skills_dir` is a folder of the devbox with skills, relative to the working directory or absolute. `trajectory` is
    the text of an ATIF document: the agent starts with what happened in it.
    """

    mcp_servers: tuple[McpServer, ...] = ()
    skills_dir: str = ""
    trajectory: str = ""

    def __bool__(self) -> bool:
        return bool(self.mcp_servers or self.skills_dir or self.trajectory)

    @property
    def variables(self) -> Mapping[str, bool]:
        """The names of variables in headers, each with whether it is required: somewhere it has no default."""
        found: dict[str, bool] = {}
        for place in (PLACEHOLDER.finditer(text) for server in self.mcp_servers for text in server.headers.values()):
            for each in place:
                found[each[1]] = found.get(each[1], False) or each[2] is None
        return found

    def filled(self, variables: Mapping[str, str]) -> Self:
        """Return it with the values of variables in headers. Raises KeyError for a required one without a value."""

        def value(found: re.Match[str]) -> str:
            return variables[found[1]] if found[2] is None else variables.get(found[1], found[2])

        servers = [
            replace(each, headers={name: PLACEHOLDER.sub(value, text) for name, text in each.headers.items()})
            for each in self.mcp_servers
        ]
        return replace(self, mcp_servers=tuple(servers))
