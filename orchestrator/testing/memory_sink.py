"""A journal in memory, as fast or as slow as a disk."""

from collections.abc import Callable

import anyio
from msgspec import structs

from orchestrator.core.events import Event
from orchestrator.core.ledger import Ledger


class MemorySink:
    """Implements `core.events.Sink` without a disk: events are in the ledger at once, at the loop's time.

    `sync` gives the seconds of the next sync. `append` waits as long as with a disk whose syncs take that long: for the
    sync under way and the next one, which all events that came meanwhile share.
    """

    def __init__(self, ledger: Ledger, sync: Callable[[], float] = lambda: 0.0) -> None:
        self.ledger = ledger
        self.events: list[Event] = []
        self._sync = sync
        #: The loop's time at which the sync under way ends, and the one that follows it; the same if none does.
        self._ends_at = self._following_ends_at = float("-inf")

    async def append(self, *batch: Event) -> None:
        self.append_nowait(*batch)
        now = anyio.current_time()
        if now >= self._following_ends_at:
            self._ends_at = self._following_ends_at = now + self._sync()
        elif now >= self._ends_at or self._ends_at == self._following_ends_at:
            self._ends_at = self._following_ends_at
            self._following_ends_at += self._sync()
        await anyio.sleep_until(self._following_ends_at)

    def append_nowait(self, *batch: Event) -> None:
        for each in batch:
            event = structs.replace(each, at=anyio.current_time())
            self.events.append(event)
            self.ledger.apply(event)

    async def wait_writable(self) -> None:
        """Memory never refuses."""
