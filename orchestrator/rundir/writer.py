"""The thread that writes: journal first, results after it, and a word to the event loop when both are there.

A disk that refuses is tried again every second, with all that has to be written, while whoever appended waits. When it
is full the ballast is given up at once; until that can be made again, trouble is told, so that nothing new begins.
After `patience` seconds the thread gives up: from then on every append fails, and what was told stays true. So it does
when anything else goes wrong: whoever waits is told, and nobody waits for a thread that is no more.
"""

import errno
import queue
import threading
import time
from asyncio import Future, get_running_loop
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from orchestrator.core.events import Event
from orchestrator.rundir.ballast import FULL, Ballast
from orchestrator.rundir.run_files import Store

#: Seconds between two syncs, at least: what comes meanwhile shares the second. A lone event never waits for it.
PACE: Final = 0.005
_AWAITED: Final = {errno.EROFS: "it to be writable", errno.ENOENT: "it to be back"} | dict.fromkeys(
    FULL, "room on its disk"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How a journal is kept; sizes in bytes."""

    #: Seconds of failing before appends fail, and from one try to the next.
    patience: float = 600.0
    retry: float = 1.0
    ballast: int = 16 << 20
    #: How much a journal grows, at least, and by a quarter, at least, from one checkpoint to the next; at the end a
    #: sixteenth of it is enough.
    checkpoint: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """Events with their lines, and their caller if it waits."""

    events: Sequence[Event]
    lines: Sequence[bytes]
    done: "Future[None] | None"


class Writer:
    """Use `start`, `put` as often as needed, `close`.

    `settle(batches, failure)` and `say(trouble)` are called on the loop: the former once for every batch, in order.
    """

    def __init__(
        self,
        store: Store,
        habits: Habits,
        *,
        settle: Callable[[list[Batch], Exception | None], None],
        say: Callable[[str | None], None],
    ) -> None:
        self._store = store
        self._habits = habits
        self._settle = settle
        self._say = say
        self._loop = get_running_loop()
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._ballast = Ballast(store.folder, habits.ballast)
        self._next_sync = 0.0
        self._next_look = 0.0
        self._trouble: str | None = None
        #: Seconds that the slowest write has taken, syncing included.
        self.slowest = 0.0
        #: The folder's lock, when nobody else would hold it for as long as the thread lives.
        self.lock: ExitStack | None = None
        self.thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def put(self, batch: Batch) -> None:
        self._queue.put(batch)

    def close(self) -> None:
        """Write what is there and end; what the disk refuses now is given up."""
        self._closing.set()
        self._queue.put(None)

    def _run(self) -> None:
        while (batches := self._next()) is not None:
            self._attempt(partial(self._write, batches))
            self._post(self._settle, batches, self._failure)
            self._attempt(self._look_after)
        self._attempt(partial(self._store.checkpoint, at_least=self._habits.checkpoint // 16))
        self._store.close()
        self._ballast.give_up()

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do it, unless something went wrong for good: that is raised where events are appended."""
        if self._failure is None:
            try:
                action()
            except Exception as error:  # noqa: BLE001 - a thread that dies would let them wait for ever
                self._failure = error
                self._post(self._settle, [], error)

    def _look_after(self) -> None:
        self._keep_ballast()
        self._store.checkpoint(at_least=max(self._habits.checkpoint, self._store.size // 4))

    def _next(self) -> list[Batch] | None:
        """Whatever is queued; nothing if it is time to look after the ballast, None at the end."""
        try:
            batch = self._queue.get(timeout=None if self._ballast.is_there else self._habits.retry)
        except queue.Empty:
            return []
        time.sleep(max(0.0, self._next_sync - time.monotonic()))
        self._next_sync = time.monotonic() + PACE
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
        happened = [event for batch in batches for event in batch.events]
        lines = [line for batch in batches for line in batch.lines]
        if lines:
            self._persist(lambda: self._store.add(happened, lines))
            self._persist(self._store.flush)

    def _persist(self, action: Callable[[], None]) -> None:
        """Do it as soon as the disk allows. Raises OSError when patience is at its end, or the journal closes."""
        began: float | None = None
        while True:
            tried_at = time.monotonic()
            try:
                action()
            except OSError as error:
                if error.errno in FULL and self._ballast.give_up():
                    continue
                began = began or time.monotonic()
                if self._closing.is_set() or time.monotonic() - began >= self._habits.patience:
                    raise
                self._tell(self._explain(error))
                self._closing.wait(self._habits.retry)
            else:
                self.slowest = max(self.slowest, time.monotonic() - tried_at)
                return

    def _explain(self, error: OSError) -> str:
        what, awaited = error.filename or self._store.folder, _AWAITED.get(error.errno or 0, "the disk")
        patience = f"{self._habits.patience / 60:.0f} minutes"
        return f"{what} cannot be written: {error.strerror}. Waiting for {awaited}, {patience} at most."

    def _keep_ballast(self) -> None:
        """All is well again when what is held in reserve is there again."""
        if not self._ballast.is_there:
            if time.monotonic() < self._next_look:
                return
            self._next_look = time.monotonic() + self._habits.retry
            try:
                self._ballast.make()
            except OSError as error:
                if error.errno in FULL:
                    room = self._habits.ballast >> 20
                    self._tell(f"The disk of {self._store.folder} has less than {room} MiB left. Waiting for room.")
                    return
        self._tell(None)

    def _tell(self, trouble: str | None) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._post(self._say, trouble)

    def _post(self, call: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is gone, and with it whoever waited
            self._loop.call_soon_threadsafe(call, *arguments)
