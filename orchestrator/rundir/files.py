"""The files of a run folder: their names, the folder's lock, and writes that survive a crash or a full disk."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Final, TypeVar

import anyio
import structlog

from orchestrator.common.locks import Held, hold
from orchestrator.core.errors import JournalError, UsageError
from orchestrator.core.protocol import LockKind

T = TypeVar("T")

JOURNAL: Final = "journal.jsonl"
RESULTS: Final = "results.jsonl"
MANIFEST: Final = "manifest.json"
#: Between two tries of a write that the disk refuses, and until that stops the sweep where no deadline of a stage does.
RETRY_EVERY_S: Final = 1.0
PATIENCE_S: Final = 600.0


def write_all(file: FileIO, data: bytes) -> None:
    """Write it all, unbuffered: a buffer would write its rest later, after a failure."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file so that a crash or a full disk leaves the old one or the new one. One process at a time only."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
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
