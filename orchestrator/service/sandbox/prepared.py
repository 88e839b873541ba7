"""What a devbox starts from: the meeting point of those who prepare environments and those who boot devboxes.

A record of its own, so that neither side imports the other.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.service.sandbox.provider import HOME, Bind, Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck:
    """A command that says with exit status 0 that a devbox is ready; times in seconds.

    As Docker's: it is run every `interval`, and may fail `retries` times in a row. In the `start_period` it is run
    every `start_interval`, and failures do not count.
    """

    command: str
    interval: float = 5.0
    timeout: float = 30.0
    start_period: float = 0.0
    start_interval: float = 5.0
    retries: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared environment; two with one `name` are the same, empty where it has none.

    `root` is a tree as `BoxSpec.root` wants it. `setup` are scripts, executed as files in the devbox's working
    directory before the launch commands; the `healthcheck` comes after these. `resources` count when the launch
    parameters say nothing. Without `network`, `hosts` are what may be reached all the same, as `egress.rules` reads
    them. `secrets` are variables of whoever runs it: they reach the agent's box, and no scorer.
    """

    name: str = ""
    root: Path | None = None
    working_directory: str = HOME
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    hosts: tuple[str, ...] = ()
    binds: tuple[Bind, ...] = ()
    setup: tuple[str, ...] = ()
    healthcheck: Healthcheck | None = None
    resources: Resources | None = None


Prepare = Callable[[], Awaitable[Prepared]]
