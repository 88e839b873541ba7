"""What the files of a run folder have in common: their names, one holder, and writes that a crash cannot halve."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Final

import orjson

from orchestrator.common.locks import Held, Kind, hold
from orchestrator.core.errors import JournalError, SweepError, UsageError

JOURNAL: Final = "journal.jsonl"
RESULTS: Final = "results.jsonl"
MANIFEST: Final = "manifest.json"
#: What every manifest says.
_SAID: Final = frozenset({"sweep", "identity", "config", "scenarios"})
_FIX: Final = "Put it back from a copy, or start anew with another --name."


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
def locked(folder: Path, lock: Kind = "file") -> Iterator[None]:
    """Be the one who is at work in a folder. Raises UsageError naming the process that is; see `locks.hold`."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(folder, lock))
        except Held as held:
            raise UsageError(
                f"{folder} is in use by {held}. Wait for it or stop it; to run beside it, give another --name."
            ) from None
        yield


def lock_of(folder: Path) -> Kind:
    """How the sweep in a folder keeps others out, as far as its manifest says."""
    with suppress(SweepError, TypeError, AttributeError):
        return "none" if read_manifest(folder)["config"].get("lock") == "none" else "file"
    return "file"


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
