"""The contract of a provider of devboxes: boot a box, run commands in it, end it.

A box offers one verb, `spawn`. Reading and writing files, scoring, building environments: all are commands, so that a
provider has little else to get right, and no code outside a box ever opens a path that a program inside it controls.
The other one, `listen`, is the only way out of a box whose network is off.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from anyio.abc import ByteReceiveStream, ByteSendStream

from orchestrator.core import protocol
from orchestrator.service.errors import SandboxError

HOME: Final = protocol.HOME
GIB = 1 << 30


class BoxDied(SandboxError):
    """The box ended while a command ran, or before it could be started; the message says how."""


class BoxStartFailed(SandboxError):
    """The box could not be booted; the message says why."""


class Capability(StrEnum):
    """Abilities of a provider; the layers above refuse requests that need one it does not declare."""

    ISOLATED = "isolated"
    """No file, process or user of the host or of another box is visible; the system is read-only."""
    ROOTED = "rooted"
    """Absolute paths such as /app, /tests and /logs are the box's own."""
    IMAGES = "images"
    """Boxes of images can be booted, which are root's own."""
    NETWORK_OFF = "network_off"
    """The network can be switched off."""
    NETWORK_ON = "network_on"
    """The machine's own network can be had."""
    PUBLIC = "public"
    """A box can have a network of its own from which it reaches the internet, and nothing else."""
    EGRESS = "egress"
    """A box whose network is off can still reach named hosts: `Box.listen` opens its own loopback to the service."""
    TREE_KILL = "tree_kill"
    """`Process.kill` and `Box.stop` end every descendant, daemons included."""
    DIES_WITH_SERVICE = "dies_with_service"
    """No process is left when the service is killed with SIGKILL."""
    SUCCESSION = "succession"
    """A box can be retired, and others started beside it over its files."""


class BoxNetwork(StrEnum):
    """The network of a box: loopback alone, others reached from a network of its own, or the machine's (NETWORK_ON).

    Of others, PUBLIC has the internet, and NEIGHBOURS the machine's neighbours too, but not the machine.
    """

    NONE = "none"
    PUBLIC = "public"
    NEIGHBOURS = "neighbours"
    HOST = "host"


class Limit(StrEnum):
    """Limits that a provider may enforce on a box; the devbox's record lists those in force."""

    CPU = "cpu"
    MEMORY = "memory"
    PROCESSES = "processes"
    DISK = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Size of a box: CPU cores, bytes of memory and of disk, number of processes."""

    cpus: float = 1.0
    memory: int = 2 * GIB
    disk: int = 4 * GIB
    processes: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A file or folder of the host, shown in the box at the absolute path `target`; read-only by default."""

    source: Path
    target: str
    is_writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRoot:
    """An unpacked image to boot a box from: the folders of its layers, from the lowest up.

    Their files belong to users and groups 0 to 65,535, which are the box's own. They follow the rules of overlayfs with
    the option `userxattr`, and no program changes them while a box runs. A box of one that `is_bare` lacks the folders
    of scenarios, such as /app: an image is built in it.
    """

    layers: tuple[Path, ...]
    is_bare: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSpec:
    """Everything a provider needs to boot one box.

    `root` is a prepared tree (`home/user/…`, `app/…`): it is copied, never shared, into the box's own writable
    folders; each of its top-level folders becomes one. /home/user, /tmp, /app, /tests, /solution, /logs and
    `working_directory` are the box's own and writable in any case, and exist. A bind at one of them covers it.
    `environment` reaches every command.

    With an `image` the whole file system is the box's own and writable, and any folder may be the working directory.
    Its programs run as root, or as the `user`: "name" or "name:group", or numbers instead, which the image's own
    /etc/passwd and /etc/group explain. Its `layer` is a folder of the host, not there yet, for what it writes: to keep
    that (`Box.keep_layer`), or to have a file system of its own beside another box. Without an image it is the
    machine's own system, read-only; with the `closure` it has our own programs at the place where a box of an image has
    them.

    Its `scratch` folders are new, writable for everybody, and its own: each a copy of a folder of the host, or empty. A
    box of an image that has the file system of another one may be `is_read_only` but for them.
    """

    id: str
    resources: Resources = Resources()
    network: BoxNetwork = BoxNetwork.NONE
    working_directory: str = HOME
    environment: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    binds: tuple[Bind, ...] = ()
    image: ImageRoot | None = None
    user: str = ""
    layer: Path | None = None
    closure: bool = False
    is_read_only: bool = False
    scratch: Mapping[str, Path | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The folder of the host that a box writes, and of an image the layers below it, from the highest down.

    They follow the rules of overlayfs with the option `userxattr`.
    """

    own: Path
    lowers: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemainingProcesses:
    """Processes in a box besides our own commands: the count of each name, and whether any listens on a socket."""

    names: Mapping[str, int] = field(default_factory=dict)
    is_listening: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One program to run in a box.

    `argv[0]` is looked up on the box's PATH. `cwd` is absolute, or relative to the working directory; None is the
    working directory itself. `environment` is added to the box's. Without `stdin` the program reads /dev/null.
    A program that `is_plain` is ours: it runs as root where the box has one, and gets no variable of the spec's
    environment: a PATH through folders that an agent can write must not decide which `cat` writes a scorer's files.
    With `as_user` it runs as the box's user all the same, and with `user` as another one of the image.
    """

    argv: tuple[str, ...]
    cwd: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: bool = False
    is_plain: bool = False
    as_user: bool = False
    user: str | None = None


#: Words before a script, for a login shell as on a Runloop devbox.
LOGIN_SHELL: Final = ("bash", "-lc")


def shell(
    script: str,
    *,
    words: tuple[str, ...] = LOGIN_SHELL,
    cwd: str | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: bool = False,
) -> Command:
    """Make a command of a script, with the `words` of the box's shell before it (`Box.shell`)."""
    return Command(argv=(*words, script), cwd=cwd, environment=environment or {}, stdin=stdin)


class Process(Protocol):
    """A running command.

    Both output streams must be read, or the program blocks as on any full pipe. They end when the program has ended and
    its output has been read, even if a process it left behind still holds them open.
    """

    @property
    def stdin(self) -> ByteSendStream | None:
        """The program's standard input, if the command asked for one."""

    @property
    def stdout(self) -> ByteReceiveStream: ...

    @property
    def stderr(self) -> ByteReceiveStream: ...

    async def wait(self) -> int:
        """Wait for the end; returns the exit status, 128 + n after signal n. Raises BoxDied. May be called often."""

    async def interrupt(self) -> None:
        """Send SIGINT to the program's process group."""

    async def kill(self) -> None:
        """End the program and every descendant of it, daemons included; returns when none is left. Idempotent.

        If one cannot be ended within seconds, the whole box is ended.
        """


class Box(Protocol):
    """A booted box."""

    @property
    def id(self) -> str: ...

    @property
    def enforced(self) -> frozenset[Limit]:
        """The limits that the kernel really enforces on this box."""

    async def spawn(self, command: Command) -> Process:
        """Start a command. Raises BoxDied.

        A program that cannot be started is a process that ends with 126 or 127 and an explanation on stderr.
        """

    async def listen(self, port: int) -> socket.socket:
        """Return a non-blocking socket that listens at 127.0.0.1:port in the box's own network (needs EGRESS).

        The caller closes it. Raises BoxDied, and OSError if the port is not available.
        """

    @property
    def shell(self) -> tuple[str, ...]:
        """The words before a user's script.

        A login shell on the machine's own system. On an image, whose start-up files would undo its variables, bash as
        it is, or ours where it has none.
        """

    def path(self, path: str) -> str:
        """Translate a path of the devbox to a path inside the box; the same, unless the provider is not ROOTED."""

    async def export(self, target: Path, only: str = "") -> None:
        """Copy the box's own folders, in the form of `BoxSpec.root`, into the empty folder `target` of the host.

        With a path `only`, copy nothing but that path and the folders above it.
        """

    def place(self, path: str) -> Path:
        """Path on the host of the box's own `path`, whatever is there; no caller may open it before `retire`."""

    @property
    def written(self) -> Written:
        """What it has written, as it is on the disk: few files, where all of an image may be many."""

    @property
    def tools(self) -> str | None:
        """Path in it of the folder with programs of ours that nothing in it can change; None: the system's are such."""

    async def remaining(self) -> RemainingProcesses:
        """Processes in it besides the running commands that were started by `spawn`."""

    async def retire(self) -> None:
        """End everything in it and keep its files until `stop`. Raises BoxDied if that takes too long."""

    async def freeze(self) -> None:
        """Stop everything in it until `thaw`. Idempotent."""

    async def thaw(self) -> None:
        """Let everything that `freeze` has stopped go on. Idempotent."""

    async def save(self, target: Path) -> None:
        """Copy what `keep_layer` would move to `target`, which is not there yet; freeze it first. Raises OSError."""

    async def keep_layer(self, target: Path, *, without: Sequence[str] = ()) -> None:
        """End everything in it, and move what it has written to `target`, a layer for an `ImageRoot` on top of its own.

        What it wrote at the paths `without` is left out: they are as in the image. `target` has to be in the file
        system of the spec's `layer`, if it names one, else of the provider's state. Without an image all of the box's
        own folders are moved, in the form of `BoxSpec.root`. Raises BoxDied and OSError.
        """

    @property
    def has_one_user(self) -> bool:
        """Tells whether its image's users do not exist in it: changes of owners and users do nothing, and succeed."""

    @property
    def is_broken_from_inside(self) -> bool:
        """Tells whether the box's own programs ended it: memory or disk was used up, or its agent gave up."""

    async def is_whole(self) -> bool:
        """Tell whether its files are still on the host; True if the box's own programs could have removed them."""

    async def wait_dead(self) -> str:
        """Wait until the box has ended; returns why ("stopped", "killed by signal 9", …). May be called often."""

    async def stop(self) -> None:
        """End the box with everything in it, and remove its files. Idempotent, bounded."""


class Provider(Protocol):
    """A source of boxes. It is no asynchronous context manager: `close` ends every box that is left."""

    @property
    def name(self) -> str:
        """The word for it in views and stored records; not always the word of `core.protocol.Isolation`."""

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    async def start(self, spec: BoxSpec, *, beside: Box | None = None) -> Box:
        """Boot a box. Raises BoxStartFailed, and SandboxUnavailable where this machine does not permit it at all.

        With `beside`, another box that has not been stopped, it runs as the same user and may use that one's files. Its
        writes there count for that one, and it ends with it at the latest. If both are of the same image, they have
        one file system, unless the spec names a `layer`. Links and files on the way to its binds give way in that.
        """

    async def close(self) -> None:
        """Stop every box."""
