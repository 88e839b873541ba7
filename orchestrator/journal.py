"""The run folder's two files: the journal, which is the truth, and results.jsonl, which is derived from it.

One thread writes. Events that queue up while it syncs share the next sync; `append` returns when its events are on
disk. The folder is locked for as long as a journal is open, so there is one writer. A line counts only with its
newline: what a crash left of a last line is cut before the first append, and damage anywhere else is an error that says
where, never a guess. Why not a database: one appended line is the smallest thing that can be durable, and people can
read it.
"""

import fcntl
import os
import queue
import threading
import time
from asyncio import Future, get_running_loop
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self

import anyio
import orjson

from orchestrator import events
from orchestrator.errors import JournalError, SweepError, UsageError
from orchestrator.events import Event, SweepOpened, TrialFinished

JOURNAL: Final = "journal.jsonl"
RESULTS: Final = "results.jsonl"
MANIFEST: Final = "manifest.json"
LOCK: Final = "lock"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash or a full disk leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb", buffering=0) as file:
            _write(file, data)
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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "another process"
            raise UsageError(
                f"{folder} is in use by {holder}. Wait for it or stop it; to run beside it, give another --name."
            ) from None
        with suppress(OSError):  # a full disk has no room for the name, and the lock holds without it
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield


def read_events(path: Path) -> Iterator[tuple[Event, int]]:
    """The events of a journal, each with the offset behind its line, up to the last whole line.

    Raises JournalError naming line and byte offset for a line that is not an event, UsageError for a journal of a
    version whose events mean something else.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                event = events.from_dict(orjson.loads(line))
            except (orjson.JSONDecodeError, JournalError) as error:
                if not file.read(1) and not line.strip(b"\0\n"):
                    return  # a tail of zeros is what some file systems leave of a torn write
                raise JournalError(
                    f"{path}, line {number}, byte {offset}: this line is damaged ({error}). "
                    "Nothing was changed; `sweep repair` keeps what can be read."
                ) from None
            if isinstance(event, SweepOpened) and event.schema > events.SCHEMA:
                raise UsageError(f"{path} was written by sweep {event.version}; this one is older. Upgrade it.")
            offset += len(line)
            yield event, offset


class _Batch:
    """Events with their lines, and their caller if it waits."""

    __slots__ = ("done", "events", "lines", "results")

    def __init__(self, batch: Iterable[Event], done: "Future[None] | None") -> None:
        self.events = [replace(event, at=round(time.time(), 3)) for event in batch]
        self.lines = b"".join(map(_line, self.events))
        self.results = b"".join(map(_result_line, self.events))
        self.done = done


class Journal:
    """Use `async with Journal.open(folder, apply) as journal`: `apply` gets every event once it is durable, in order.

    The events that are there already are applied before `open` returns.
    """

    def __init__(self, folder: Path, apply: Callable[[Event], None]) -> None:
        self._folder = folder
        self._apply = apply
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="journal", daemon=True)
        self._loop = get_running_loop()
        self._failure: OSError | None = None
        self._is_closed = False
        #: What `apply` said of an event that nobody waited for; the next who waits hears of it.
        self._refusal: Exception | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, apply: Callable[[Event], None]) -> AsyncIterator[Self]:
        """Lock the folder, read what is there, and be ready to append.

        Raises UsageError when another process has the folder, JournalError when the journal is damaged or the disk
        refuses.
        """
        with locked(folder):
            journal = cls(folder, apply)
            await anyio.to_thread.run_sync(journal._recover)
            journal._thread.start()
            try:
                yield journal
            finally:
                journal._is_closed = True
                journal._queue.put(None)
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(journal._thread.join, 30.0)

    async def append(self, *batch: Event) -> None:
        """Write events; returns when they are durable and applied.

        Raises JournalError when they cannot be written, and what `apply` raises; the events are durable then.
        """
        done = self._loop.create_future()
        self._put(_Batch(batch, done))
        await done

    def append_nowait(self, *batch: Event) -> None:
        """Write events, without waiting. They are durable no later than the next that somebody waits for."""
        self._put(_Batch(batch, None))

    def _put(self, batch: _Batch) -> None:
        if self._is_closed:  # nobody would ever write it
            raise JournalError(f"{self._folder / JOURNAL} is closed.")
        self._queue.put(batch)

    def _recover(self) -> None:
        try:
            self._read()
        except OSError as error:
            raise JournalError(f"{self._folder} cannot be opened: {error}") from error

    def _read(self) -> None:
        path = self._folder / JOURNAL
        path.touch()
        end, results = 0, _Results()
        for event, offset in read_events(path):
            try:
                self._apply(event)
            except SweepError as error:
                raise JournalError(f"{path}, byte {end}: {error} Nothing was changed.") from error
            results.add(event)
            end = offset
        if path.stat().st_size > end:
            os.truncate(path, end)
        results.restore(self._folder / RESULTS)
        sync_folder(self._folder)

    def _serve(self) -> None:
        with ExitStack() as stack:
            try:
                journal = stack.enter_context((self._folder / JOURNAL).open("ab", buffering=0))
                results = stack.enter_context((self._folder / RESULTS).open("ab", buffering=0))
            except OSError as error:
                self._failure = error
            while (batches := self._next()) is not None:
                if self._failure is None:
                    try:
                        _commit(journal, results, batches)
                    except OSError as error:
                        self._failure = error  # a part of a line may be there: nothing may follow it
                self._tell(batches)

    def _next(self) -> list[_Batch] | None:
        batch = self._queue.get()
        batches: list[_Batch] = []
        while batch is not None:
            batches.append(batch)
            try:
                batch = self._queue.get_nowait()
            except queue.Empty:
                return batches
        if batches:
            self._queue.put(None)
        return batches or None

    def _tell(self, batches: list[_Batch]) -> None:
        with suppress(RuntimeError):  # the loop is gone, and with it whoever waited
            self._loop.call_soon_threadsafe(self._settle, batches, self._failure)

    def _settle(self, batches: list[_Batch], failure: OSError | None) -> None:
        for batch in batches:
            if failure is None:
                error = self._apply_all(batch.events) or self._refusal
            else:
                error = JournalError(f"{self._folder / JOURNAL} cannot be written: {failure}")
            if batch.done is None or batch.done.done():
                self._refusal = error
                continue
            self._refusal = None
            if error is None:
                batch.done.set_result(None)
            else:
                batch.done.set_exception(error)

    def _apply_all(self, batch: Iterable[Event]) -> Exception | None:
        """Apply events; returns what was raised, because here nobody would hear it and the appender would hang."""
        try:
            for event in batch:
                self._apply(event)
        except Exception as error:  # noqa: BLE001 - it is raised where the event was appended
            return error
        return None


class _Results:
    """What results.jsonl must contain, so that it can be written anew when it does not."""

    def __init__(self) -> None:
        self._lines: dict[str, bytes] = {}

    def add(self, event: Event) -> None:
        match event:
            case TrialFinished():
                self._lines[event.trial] = _result_line(event)
            case events.TrialReopened():
                self._lines.pop(event.trial, None)
            case _:
                pass

    def restore(self, path: Path) -> None:
        wanted = b"".join(self._lines.values())
        if not path.exists() or path.read_bytes() != wanted:
            write_atomically(path, wanted)


def _line(event: Event) -> bytes:
    return orjson.dumps(events.to_dict(event), option=orjson.OPT_APPEND_NEWLINE)


def _result_line(event: Event) -> bytes:
    """The line of results.jsonl that an event gives; most give none."""
    if not isinstance(event, TrialFinished):
        return b""
    return orjson.dumps(event.result, option=orjson.OPT_APPEND_NEWLINE)


def _commit(journal: FileIO, results: FileIO, batches: Sequence[_Batch]) -> None:
    _write(journal, b"".join(batch.lines for batch in batches))
    os.fsync(journal.fileno())
    _write(results, b"".join(batch.results for batch in batches))


def _write(file: FileIO, data: bytes) -> None:
    """Write it all, unbuffered: what a buffer kept after a failure would follow it later."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises UsageError if there is none, JournalError if it cannot be read."""
    path = folder / MANIFEST
    try:
        manifest = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{folder} is not a sweep: it has no {MANIFEST}.") from None
    except orjson.JSONDecodeError as error:
        raise JournalError(f"{path} is damaged: {error}.") from None
    if not isinstance(manifest, dict):
        raise JournalError(f"{path} is damaged: a JSON object was expected.")
    return manifest
