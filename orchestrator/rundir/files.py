"""The files of a run folder: their names, the folder's lock, and writes that survive a crash or a full disk."""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from shutil import rmtree
from typing import BinaryIO, Final, TypeVar

import anyio
import structlog

from orchestrator.common.locks import Held, hold
from orchestrator.core.errors import JournalError, UsageError
from orchestrator.core.protocol import LockKind
from orchestrator.core.records import TrialKey, path_part

T = TypeVar("T")

JOURNAL: Final = "journal.jsonl"
RESULTS: Final = "results.jsonl"
MANIFEST: Final = "manifest.json"
REPORT: Final = "report.html"
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: The output of an agent, in the folder of its attempt.
AGENT_LOG: Final = "agent.log"
#: Between two tries of a write that the disk refuses, and until that stops the sweep where no deadline of a stage does.
RETRY_EVERY_S: Final = 1.0
PATIENCE_S: Final = 600.0


def attempt_folder(folder: Path, key: TrialKey, scenario: str, number: int) -> Path:
    """`trials/<scenario>/<arm>/<n>/attempt-<k>` below the run folder."""
    return folder / "trials" / path_part(scenario) / path_part(key.arm) / str(key.number) / f"attempt-{number}"


def write_all(file: FileIO, data: bytes) -> None:
    """Write it all, unbuffered: a buffer would write its rest later, after a failure."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file so that a crash or a full disk leaves the old one or the new one. One process at a time only."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, _NEW, 0o666), "wb") as file:  # not through a link that a stranger left
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_where_told(path: Path, data: bytes) -> None:
    """Write what a user wants written to a place of theirs: a file as `write_atomically`, with the rights that it has.

    A link is followed, and a device or a pipe is written to, not replaced. Raises OSError.
    """
    path = path.resolve()
    if not path.exists():
        write_atomically(path, data)
    elif path.is_file():
        rights = stat.S_IMODE(path.stat().st_mode)
        write_atomically(path, data)
        path.chmod(rights)
    else:
        with path.open("wb", buffering=0) as file:
            write_all(file, data)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, and nothing else: a folder from a stranger may have links and pipes in it.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return os.fdopen(fd, "rb")


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Write a folder whole or not at all: `fill` gets an empty one, which then takes the name.

    Raises FileExistsError if there is something else than an empty folder of that name, and what `fill` raises.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    draft.mkdir(parents=True)
    try:
        fill(draft)
        draft.replace(path)
    except BaseException:
        rmtree(draft)
        raise
    sync_folder(path.parent)


async def persist(write: Callable[[], T], *, patience: float = float("inf")) -> T:
    """Repeat a small write until the disk takes it; `write` must be safe to repeat. The caller's deadline bounds it.

    Raises JournalError after `patience` seconds.
    """
    until = anyio.current_time() + patience
    while True:
        try:
            return write()
        except OSError as error:
            structlog.get_logger().warning("disk.refuses", error=str(error))
            if anyio.current_time() >= until:
                raise JournalError(f"The run folder cannot be written: {error}") from error
        await anyio.sleep(RETRY_EVERY_S)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(folder: Path, lock: LockKind = "file") -> Iterator[None]:
    """Hold the lock of a folder. Raises UsageError naming the process that holds it; see `locks.hold`."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(folder, lock))
        except Held as held:
            raise UsageError(
                f"{folder} is in use by {held}. Wait for it or stop it; to run beside it, give another --name."
            ) from None
        yield
