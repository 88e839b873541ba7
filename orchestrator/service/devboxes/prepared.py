"""What a devbox starts from: the meeting point of those who prepare environments and those who boot devboxes.

A record of its own, so that neither side imports the other.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.service.devboxes.contract import HOME, Bind, Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared environment.

    `root` is a tree as `BoxSpec.root` wants it. `setup` are shell scripts, run in the devbox's working directory
    before the launch commands. `resources` count when the launch parameters say nothing.
    """

    root: Path | None = None
    working_directory: str = HOME
    environment: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    binds: tuple[Bind, ...] = ()
    setup: tuple[str, ...] = ()
    resources: Resources | None = None


Prepare = Callable[[], Awaitable[Prepared]]
