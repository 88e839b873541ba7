"""The journal: read, recovered after a crash, and written by a thread beside the event loop.

The thread writes the journal first, results after it, and then informs the event loop. A disk that refuses is tried
again every second, with everything that has to be written, while the callers wait. When it is full the ballast is given
up at once; until it can be made again there is trouble, so that no new work begins. After `patience` seconds the thread
gives up: from then on every append fails, and everything reported as durable stays true. It also gives up after any
other failure, and every caller gets that failure: none waits for a thread that has ended.
"""

import errno
import os
import queue
import threading
import time
from asyncio import Future, get_running_loop
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self

import anyio
import structlog
from msgspec import structs

from orchestrator.core.errors import JournalError, SweepError, UsageError
from orchestrator.core.events import SCHEMA, Event, SweepOpened, from_line, to_line
from orchestrator.core.ledger import Ledger
from orchestrator.core.protocol import LockKind
from orchestrator.rundir import checkpoint
from orchestrator.rundir.append_file import FULL, AppendFile, Ballast
from orchestrator.rundir.checkpoint import Folded
from orchestrator.rundir.files import JOURNAL, RESULTS, locked, sync_folder
from orchestrator.rundir.results_file import Results, unknown_results

#: Patience with a disk that neither writes nor refuses, when the journal closes; a slow one gets more.
_CLOSE_TIMEOUT_S: Final = 5.0
#: The least time between two syncs: events that come meanwhile share the second. A lone event never waits for it.
SYNC_INTERVAL_S: Final = 0.005
_AWAITED: Final = {errno.EROFS: "it to be writable", errno.ENOENT: "it to be back"} | dict.fromkeys(
    FULL, "room on its disk"
)
_FIX: Final = "Nothing was changed; `sweep repair` keeps what can be read."
#: A clock that counts while the machine sleeps, where the system has one.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BEGAN: Final = time.time() - time.clock_gettime(_CLOCK)


def now() -> float:
    """The time of an event in seconds since 1970: the wall clock's at the start of this process, and steady since.

    So sums of such times, for example devbox hours, never jump within the life of a process.
    """
    return _BEGAN + time.clock_gettime(_CLOCK)


def read_events(path: Path, offset: int = 0, lines: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield the events of a journal from an offset to the last whole line, each with the offset after its line.

    `lines` is the number of lines before the offset. Raises JournalError naming line and byte offset for a line that is
    not an event, UsageError for a later version's journal.
    """
    with path.open("rb", buffering=1 << 16) as file:
        file.seek(offset)
        for number, line in enumerate(file, lines + 1):
            if not line.endswith(b"\n"):
                return
            try:
                event = from_line(line)
            except JournalError as error:
                if not file.read(1) and not line.strip(b"\0\n"):
                    return  # some file systems leave a tail of zeros after a torn write
                raise JournalError(
                    f"{path}, line {number}, byte {offset}: this line is damaged ({error}). {_FIX}"
                ) from None
            check_version(event, path)
            offset += len(line)
            yield event, offset


def check_version(event: Event, path: Path) -> None:
    """Raise UsageError for a journal whose version gives events another meaning."""
    if type(event) is SweepOpened and event.schema > SCHEMA:
        raise UsageError(f"{path} was written by sweep {event.version}; this one is older. Upgrade it.")


def fold_events(path: Path, ledger: Ledger, offset: int = 0, lines: int = 0) -> Iterator[tuple[Event, int]]:
    """Read events, and apply each to a ledger. Raises as `read_events`, and JournalError for one that cannot follow."""
    for event, end in read_events(path, offset, lines):
        try:
            ledger.apply(event)
        except SweepError as error:
            raise JournalError(f"{path}, byte {offset}: {error} {_FIX}") from error
        offset = end
        yield event, end


class RunFiles:
    """The journal and its derived files, in step: results.jsonl, and a checkpoint now and then.

    For one thread at a time, which holds the folder's lock.
    """

    def __init__(
        self, folder: Path, *, ledger: Ledger, journal: AppendFile, lines: int, results: Results, folded: int
    ) -> None:
        self.folder = folder
        #: The fold of the journal on the disk.
        self._ledger = ledger
        self._journal = journal
        self._lines = lines
        self._results = results
        #: Bytes of the journal that the checkpoint covers.
        self._folded = folded

    @classmethod
    def recover(cls, folder: Path, ledger: Ledger) -> Self:
        """Fold the journal into an empty ledger, cut off a torn tail, and make results.jsonl agree with it.

        Raises JournalError naming the place of damage, or if the journal lost lines that results.jsonl has results of;
        UsageError for a later version's journal; OSError.
        """
        path = folder / JOURNAL
        path.touch()
        kept = checkpoint.load(folder, ledger) or Folded()
        folded, rows = kept.journal.size, len(kept.offsets)
        end, lines, results = folded, kept.lines, Results(folder, kept.offsets)
        for event, offset in fold_events(path, ledger, end, lines):
            results.note(event, end)
            end, lines = offset, lines + 1

        results_file = folder / RESULTS
        lost = sum(1 for _ in unknown_results(folder, ledger))
        if lost or (not lines and results_file.is_file() and results_file.stat().st_size):
            what = f"has lost {lost} finished trials that" if lost else "has no whole line,"
            raise JournalError(
                f"{path} {what} {results_file} has. Nothing was changed: put the journal back from a copy, or have "
                f"`sweep repair {folder}` take these results into it and set the rest aside; then resume the sweep."
            )
        if path.stat().st_size > end:
            os.truncate(path, end)
        are_first = sum(offset < folded for offset in results.offsets.values()) == rows  # none was reopened since then
        results.restore(kept.results if are_first else None, rows)
        sync_folder(folder)
        journal = AppendFile(path, kept.journal.read(path, end))
        return cls(folder, ledger=ledger.copy(), journal=journal, lines=lines, results=results, folded=folded)

    def add(self, batch: Sequence[Event], lines: Sequence[bytes]) -> None:
        """Make events durable. After OSError none of them is written, and it may be tried again."""
        offset = self._journal.checksum.size
        self._journal.append(b"".join(lines), sync=True)
        for event, line in zip(batch, lines, strict=True):
            self._ledger.apply(event)
            self._results.note(event, offset)
            offset += len(line)
        self._lines += len(lines)

    def flush(self) -> None:
        """Update results.jsonl. After OSError it may be tried again."""
        self._results.flush()

    @property
    def size(self) -> int:
        """The size of the journal in bytes."""
        return self._journal.checksum.size

    def checkpoint(self, *, at_least: int) -> None:
        """Save the fold of the journal, if that grew by more than `at_least` bytes since the last time."""
        if self.size - self._folded <= at_least:
            return
        self._folded = self.size
        folded = Folded(
            journal=self._journal.checksum,
            lines=self._lines,
            offsets=self._results.offsets,
            results=self._results.digest(),
        )
        try:
            checkpoint.save(self.folder, self._ledger, folded)
        except Exception as error:  # noqa: BLE001 - a checkpoint is disposable
            structlog.get_logger().debug("checkpoint.failed", folder=str(self.folder), reason=repr(error))

    def close(self) -> None:
        self._journal.close()
        self._results.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalSettings:
    """The settings of a journal; times in seconds, sizes in bytes."""

    #: Failing for so long makes appends fail; a try follows another after `retry`.
    patience: float = 600.0
    retry: float = 1.0
    ballast: int = 16 << 20
    #: The growth of a journal from one checkpoint to the next, and never less than a quarter of its size; at the end a
    #: sixteenth of this is enough.
    checkpoint: int = 16 << 20


_SETTINGS: Final = JournalSettings()


@dataclass(frozen=True, slots=True)
class Batch:
    """Events with their lines, and the future of their caller if it waits."""

    events: Sequence[Event]
    lines: Sequence[bytes]
    done: "Future[None] | None"


class Journal:
    """Use `async with Journal.open(folder, ledger) as journal`: the ledger has every event once it is appended.

    Earlier events are applied before `open` returns.
    """

    def __init__(self, path: Path, ledger: Ledger, files: RunFiles, settings: JournalSettings) -> None:
        self._path = path
        self._ledger = ledger
        self._writer = Writer(files, settings, settle=self._settle, report=self._report)
        self._loop = get_running_loop()
        self._is_closed = False
        self._trouble: str | None = None
        self._failure: JournalError | None = None
        self._changed = anyio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, folder: Path, ledger: Ledger, settings: JournalSettings = _SETTINGS, *, lock: LockKind = "file"
    ) -> AsyncIterator[Self]:
        """Lock the folder, fold its journal into an empty ledger, and be ready to append.

        Raises UsageError when another process has the folder, JournalError when the journal is damaged or the disk
        refuses.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(folder, lock))
                files = await anyio.to_thread.run_sync(RunFiles.recover, folder, ledger)
            except OSError as error:
                raise JournalError(f"{folder} cannot be opened: {error}") from error
            journal = cls(folder / JOURNAL, ledger, files, settings)
            writer = journal._writer
            writer.thread.start()
            try:
                yield journal
            finally:  # bounded: events that the disk refuses now were not reported as durable
                journal._is_closed = True
                writer.close()
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(writer.thread.join, _CLOSE_TIMEOUT_S + 2 * writer.slowest_s)
                if writer.thread.is_alive():  # it may still write: the lock is held until the process ends
                    writer.lock = stack.pop_all()

    @property
    def trouble(self) -> str | None:
        """The trouble with the disk and what is waited for, for people; None if there is none."""
        return self._trouble

    async def wait_writable(self) -> None:
        """Wait until there is no trouble, so that new work may begin. Raises JournalError once writing has failed."""
        while self._trouble is not None and self._failure is None:
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    async def append(self, *batch: Event) -> None:
        """Apply events and write them; returns when they are durable, however long the disk takes.

        Raises JournalError when they could not be written for too long, and the ledger's error for an event that it
        refuses: those before that one are written.
        """
        done = self._loop.create_future()
        self._take(batch, done)
        await done

    def append_nowait(self, *batch: Event) -> None:
        """Append without waiting. The events are durable no later than the next batch that is waited for."""
        self._take(batch, None)

    def _take(self, batch: Iterable[Event], done: Future[None] | None) -> None:
        """Apply events in the form in which they will be read, then queue them for the writer."""
        if self._is_closed:  # it would never be written
            raise JournalError(f"{self._path} is closed.")
        events, lines = list[Event](), list[bytes]()
        try:
            for event in batch:
                line = to_line(structs.replace(event, at=round(now(), 3)))
                read = from_line(line)
                self._ledger.apply(read)
                events.append(read)
                lines.append(line)
        except BaseException:
            self._writer.put(Batch(events, lines, None))
            raise
        self._writer.put(Batch(events, lines, done))

    def _report(self, trouble: str | None) -> None:
        self._trouble = trouble
        if trouble is None:
            structlog.get_logger().info("journal.writable", path=str(self._path))
        else:
            structlog.get_logger().warning("journal.trouble", path=str(self._path), trouble=trouble)
        self._turn()

    def _turn(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _settle(self, batches: list[Batch], failure: Exception | None) -> None:
        if failure is not None and self._failure is None:
            words = f"{self._path} cannot be written: {failure}"
            self._failure = failure if isinstance(failure, JournalError) else JournalError(words)
            self._turn()
        for done in (batch.done for batch in batches):
            if done is None or done.done():
                continue
            if self._failure is None:
                done.set_result(None)
            else:
                done.set_exception(self._failure)


class Writer:
    """The thread that writes. Use `thread.start()`, `put` as often as needed, `close`.

    `settle(batches, failure)` and `report(trouble)` are called on the loop: the former once for every batch, in order.
    """

    def __init__(
        self,
        files: RunFiles,
        settings: JournalSettings,
        *,
        settle: Callable[[list[Batch], Exception | None], None],
        report: Callable[[str | None], None],
    ) -> None:
        self._files = files
        self._settings = settings
        self._settle = settle
        self._on_report = report
        self._loop = get_running_loop()
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._ballast = Ballast(files.folder, settings.ballast)
        self._next_sync_at = 0.0
        self._next_ballast_at = 0.0
        self._trouble: str | None = None
        #: Seconds of the slowest write, with its sync.
        self.slowest_s = 0.0
        #: The folder's lock, if the journal was closed before the thread ended.
        self.lock: ExitStack | None = None
        self.thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def put(self, batch: Batch) -> None:
        self._queue.put(batch)

    def close(self) -> None:
        """Write the queued events and end; those that the disk refuses now are given up."""
        self._closing.set()
        self._queue.put(None)

    def _run(self) -> None:
        while (batches := self._next()) is not None:
            self._attempt(partial(self._write, batches))
            self._post(self._settle, batches, self._failure)
            self._attempt(self._keep_ballast)
            at_least = max(self._settings.checkpoint, self._files.size // 4)
            self._attempt(partial(self._files.checkpoint, at_least=at_least))
        self._attempt(partial(self._files.checkpoint, at_least=self._settings.checkpoint // 16))
        self._files.close()
        self._ballast.give_up()

    def _attempt(self, action: Callable[[], None]) -> None:
        """Call `action`, unless something failed for good; a failure is raised where events are appended."""
        if self._failure is None:
            try:
                action()
            except Exception as error:  # noqa: BLE001 - if the thread died, callers would wait forever
                self._failure = error
                self._post(self._settle, [], error)

    def _next(self) -> list[Batch] | None:
        """Wait for the queued batches; none if it is time to make the ballast again, None at the end."""
        try:
            batch = self._queue.get(timeout=None if self._ballast.is_there else self._settings.retry)
        except queue.Empty:
            return []
        time.sleep(max(0.0, self._next_sync_at - time.monotonic()))
        self._next_sync_at = time.monotonic() + SYNC_INTERVAL_S
        batches: list[Batch] = []
        while batch is not None:
            batches.append(batch)
            try:
                batch = self._queue.get_nowait()
            except queue.Empty:
                return batches
        if batches:
            self._queue.put(None)
        return batches or None

    def _write(self, batches: list[Batch]) -> None:
        events = [event for batch in batches for event in batch.events]
        lines = [line for batch in batches for line in batch.lines]
        if lines:
            self._persist(lambda: self._files.add(events, lines))
            self._persist(self._files.flush)

    def _persist(self, action: Callable[[], None]) -> None:
        """Call `action` until the disk takes it. Raises OSError after `patience` seconds, or when it closes."""
        began: float | None = None
        while True:
            tried_at = time.monotonic()
            try:
                action()
            except OSError as error:
                if error.errno in FULL and self._ballast.give_up():
                    continue
                began = began or time.monotonic()
                if self._closing.is_set() or time.monotonic() - began >= self._settings.patience:
                    raise
                what, awaited = error.filename or self._files.folder, _AWAITED.get(error.errno or 0, "the disk")
                patience = f"{self._settings.patience / 60:.0f} minutes"
                words = f"{what} cannot be written: {error.strerror}. Waiting for {awaited}, {patience} at most."
                self._report(words)
                self._closing.wait(self._settings.retry)
            else:
                self.slowest_s = max(self.slowest_s, time.monotonic() - tried_at)
                return

    def _keep_ballast(self) -> None:
        """Make the ballast again if it was given up; the trouble is over when it is there."""
        if not self._ballast.is_there:
            if time.monotonic() < self._next_ballast_at:
                return
            self._next_ballast_at = time.monotonic() + self._settings.retry
            try:
                self._ballast.make()
            except OSError as error:
                if error.errno in FULL:
                    room = self._settings.ballast >> 20
                    self._report(f"The disk of {self._files.folder} has less than {room} MiB left. Waiting for room.")
                    return
        self._report(None)

    def _report(self, trouble: str | None) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._post(self._on_report, trouble)

    def _post(self, call: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, and its callers are gone
            self._loop.call_soon_threadsafe(call, *arguments)


class Reader:
    """Reads a journal without its lock, while another process may write it; a torn line is left for the next read."""

    def __init__(self, folder: Path) -> None:
        """Fold the journal, from its checkpoint on if it has one. Raises JournalError for damage. Blocking."""
        self.ledger = Ledger()
        kept = checkpoint.load(folder, self.ledger) or Folded()
        self._path = folder / JOURNAL
        self._offset, self._lines = kept.journal.size, kept.lines
        with suppress(FileNotFoundError):
            for _, end in fold_events(self._path, self.ledger, self._offset, self._lines):
                self._offset, self._lines = end, self._lines + 1

    def read(self) -> list[Event]:
        """The events since the last read; they are not in the ledger. Raises JournalError for damage. Blocking."""
        found = []
        with suppress(FileNotFoundError):
            for event, end in read_events(self._path, self._offset, self._lines):
                found.append(event)
                self._offset, self._lines = end, self._lines + 1
        return found
