"""The journal as the event loop sees it."""

from asyncio import Future, get_running_loop
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Self

import anyio
import structlog
from msgspec import structs

from orchestrator.common.locks import Kind
from orchestrator.core.errors import JournalError
from orchestrator.core.events import Event, from_line, to_line
from orchestrator.core.ledger import Ledger
from orchestrator.rundir.clock import now
from orchestrator.rundir.files import JOURNAL, locked
from orchestrator.rundir.run_files import Store
from orchestrator.rundir.writer import Batch, Habits, Writer

#: Seconds for a disk that neither writes nor refuses, when the journal closes; a slow one gets more.
_CLOSING: Final = 5.0
_HABITS: Final = Habits()


class Journal:
    """Use `async with Journal.open(folder, ledger) as journal`: the ledger has every event once it is appended.

    The events that are there already are applied before `open` returns.
    """

    def __init__(self, path: Path, ledger: Ledger, store: Store, habits: Habits) -> None:
        self._path = path
        self._ledger = ledger
        self._writer = Writer(store, habits, settle=self._settle, say=self._hear)
        self._loop = get_running_loop()
        self._is_closed = False
        self._trouble: str | None = None
        self._failure: JournalError | None = None
        self._changed = anyio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, folder: Path, ledger: Ledger, habits: Habits = _HABITS, *, lock: Kind = "file"
    ) -> AsyncIterator[Self]:
        """Lock the folder, fold what is there into an empty ledger, and be ready to append.

        Raises UsageError when another process has the folder, JournalError when the journal is damaged or the disk
        refuses.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(folder, lock))
                store = await anyio.to_thread.run_sync(Store.recover, folder, ledger)
            except OSError as error:
                raise JournalError(f"{folder} cannot be opened: {error}") from error
            journal = cls(folder / JOURNAL, ledger, store, habits)
            journal._writer.thread.start()
            try:
                yield journal
            finally:
                await journal._close(stack)

    @property
    def trouble(self) -> str | None:
        """Why the disk takes nothing, or next to nothing, and what is waited for, for people; None if all is well."""
        return self._trouble

    async def wait_writable(self) -> None:
        """Returns when new work may begin: at once, if there is no trouble. Raises JournalError if there is no hope."""
        while self._trouble is not None and self._failure is None:
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    async def append(self, *batch: Event) -> None:
        """Apply events and write them; returns when they are durable, however long the disk takes.

        Raises JournalError when they cannot be written for too long, and what the ledger raises: those before the one
        that it refused are written.
        """
        done = self._loop.create_future()
        self._take(batch, done)
        await done

    def append_nowait(self, *batch: Event) -> None:
        """As `append`, without waiting. They are durable no later than the next that somebody waits for."""
        self._take(batch, None)

    def _take(self, batch: Iterable[Event], done: Future[None] | None) -> None:
        """Apply events in the form in which they will be read, then have them written."""
        if self._is_closed:  # nobody would ever write it
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

    async def _close(self, stack: ExitStack) -> None:
        """Write what is there, within bounds: what the disk refuses now was not reported as durable."""
        self._is_closed = True
        self._writer.close()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._writer.thread.join, _CLOSING + 2 * self._writer.slowest)
        if self._writer.thread.is_alive():  # it may yet write: the lock is held until the process ends
            self._writer.lock = stack.pop_all()

    def _hear(self, trouble: str | None) -> None:
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
