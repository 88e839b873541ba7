"""The files of a run folder: their names, the folder's lock, and writes that a crash cannot halve."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Final

from orchestrator.common.locks import Held, Kind, hold
from orchestrator.core.errors import UsageError

JOURNAL: Final = "journal.jsonl"
RESULTS: Final = "results.jsonl"
MANIFEST: Final = "manifest.json"


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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(folder: Path, lock: Kind = "file") -> Iterator[None]:
    """Hold the lock of a folder. Raises UsageError naming the process that holds it; see `locks.hold`."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(folder, lock))
        except Held as held:
            raise UsageError(
                f"{folder} is in use by {held}. Wait for it or stop it; to run beside it, give another --name."
            ) from None
        yield
