"""The record of a prepared environment that a devbox starts from, and of its preparation.

They stand between the code that prepares environments and the code that boots devboxes, so that neither imports the
other.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.service.sandbox.provider import HOME, Bind, ImageRoot, Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck:
    """A command that reports with exit status 0 that a devbox is ready; times in seconds.

    It has Docker's semantics: it runs every `interval`, and may fail `retries` times in a row. In the `start_period` it
    runs every `start_interval`, and failures do not count.
    """

    command: str
    interval: float = 5.0
    timeout: float = 30.0
    start_period: float = 0.0
    start_interval: float = 5.0
    retries: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared environment; two with one `name` are the same, and "" names none.

    `root` is a tree in the form of `BoxSpec.root`, `image` is that of `BoxSpec`. The agent and the steps of the
    environment run as one user of the image, scorers as another or the same. `files` are written first, from path to
    contents; then come the scripts `setup`, executed as files in the devbox's working directory, the launch commands,
    and the `healthcheck`. `resources` apply when the launch parameters set none. Without `network`, only `hosts` may be
    reached, in the form of `egress.rules`.
    `secrets` are variables of the user who runs it: they reach the agent's box, and no scorer. `verifiers`
    are the environments of its scorers where these are others, one for each step of a scenario (None: this one, too);
    one `has_tests` if these are in its image, at /tests.
    """

    name: str = ""
    root: Path | None = None
    image: ImageRoot | None = None
    agent_user: str = ""
    verifier_user: str = ""
    working_directory: str = HOME
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    hosts: tuple[str, ...] = ()
    binds: tuple[Bind, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    healthcheck: Healthcheck | None = None
    resources: Resources | None = None
    verifiers: "tuple[Prepared | None, ...]" = ()
    has_tests: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStart:
    """What happens in a devbox before a step of several.

    The files of the tar.gz `workdir`, if it has any, are put into the working directory; their setup.sh, if that
    `has_setup`, is run there by bash; then the `healthcheck` has to pass.
    """

    workdir: bytes = b""
    has_setup: bool = False
    healthcheck: Healthcheck | None = None


@dataclass(slots=True, kw_only=True)
class Preparation:
    """The making of an environment for one user of it, who closes `held` when nothing of it is used any more.

    `doing` says in words what goes on now. One that is `early` fails where it would have to wait for room.
    """

    is_early: bool = False
    held: ExitStack = field(default_factory=ExitStack)
    doing: Callable[[], str] = str


Prepare = Callable[[Preparation], Awaitable[Prepared]]
