"""What the files of a run folder have in common: their names, one holder, and writes that a crash cannot halve."""

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Final

import orjson

from orchestrator.errors import JournalError, UsageError

JOURNAL: Final = "journal.jsonl"
RESULTS: Final = "results.jsonl"
MANIFEST: Final = "manifest.json"
LOCK: Final = "lock"
#: What every manifest says.
_SAID: Final = frozenset({"sweep", "identity", "config", "scenarios"})
_FIX: Final = "Put it back from a copy, or start anew with another --name."
#: Who looks whether a folder is in use holds its lock for an instant: so often is it tried, so many seconds apart.
_TRIES: Final = 20
_INSTANT: Final = 0.005


def write_all(file: FileIO, data: bytes) -> None:
    """Write it all, unbuffered: what a buffer kept after a failure would follow it later."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file so that a crash or a full disk leaves the old one or the new one. One process at a time may."""
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
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises UsageError naming the process that has it."""
    with (folder / LOCK).open("a+b", buffering=0) as file:
        for _ in range(_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_INSTANT)
        else:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "another process"
            raise UsageError(
                f"{folder} is in use by {holder}. Wait for it or stop it; to run beside it, give another --name."
            )
        with suppress(OSError):  # a full disk has no room for the name, and the lock holds without it
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises UsageError if there is none, JournalError if it cannot be read."""
    path = folder / MANIFEST
    try:
        manifest = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{folder} is not a sweep: it has no {MANIFEST}.") from None
    except orjson.JSONDecodeError as error:
        raise JournalError(f"{path} is damaged: {error}. {_FIX}") from None
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(manifest, dict) or not manifest.keys() >= _SAID:
        raise JournalError(f"{path} is damaged: a JSON object with {', '.join(sorted(_SAID))} was expected. {_FIX}")
    return manifest
