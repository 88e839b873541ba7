"""What a devbox starts from: the meeting point of those who prepare environments and those who boot devboxes.

A record of its own, so that neither side imports the other.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.service.devboxes.contract import HOME, Bind, Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared environment; two with one `name` are the same, empty where it has none.

    `root` is a tree as `BoxSpec.root` wants it. `setup` are shell scripts, run in the devbox's working directory
    before the launch commands. `resources` count when the launch parameters say nothing. Without `network`, `hosts`
    are what may be reached all the same, as `egress.rules` reads them. `secrets` are variables of whoever runs it: they
    reach the agent's box, and no scorer.
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
    resources: Resources | None = None


Prepare = Callable[[], Awaitable[Prepared]]
