"""Feeds the bounded queue: pending trials one at a time, and those to be tried again when their back-off is over.

Nothing is created for a trial before a worker can take it, so memory does not grow with the benchmark; a back-off is an
entry in a heap, and holds neither a worker nor a devbox.
"""

import heapq
from collections.abc import Collection, Iterator
from itertools import filterfalse

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from orchestrator.engine.shutdown import Stopping
from orchestrator.model import TrialKey


class Scheduler:
    """`pending` is asked for the next trial only when the queue has room for it.

    `left` are trials of it whose devboxes an earlier process left behind: handed out first, and though we are stopping,
    for they are in flight already.
    """

    def __init__(self, pending: Iterator[TrialKey], stopping: Stopping, left: Collection[TrialKey] = ()) -> None:
        self._left = left
        self._pending = filterfalse(frozenset(left).__contains__, pending)
        self._stopping = stopping
        self._again: list[tuple[float, TrialKey]] = []
        self._in_flight = 0
        #: Nothing is handed out before.
        self._calm_at = float("-inf")
        #: Whether trials are handed out now.
        self.is_feeding = False
        self._changed = anyio.Event()

    async def feed(self, queue: MemoryObjectSendStream[TrialKey]) -> None:
        """Fill the queue until every trial is finished or a stop begins; then close it."""
        self.is_feeding = True
        async with queue:
            for left in self._left:
                self._in_flight += 1
                await queue.send(left)
            with self._stopping.until_draining():
                while (key := await self._next()) is not None:
                    await queue.send(key)
        self.is_feeding = False

    def retry(self, key: TrialKey, delay: float) -> None:
        """Try this trial again, in `delay` seconds."""
        heapq.heappush(self._again, (anyio.current_time() + delay, key))
        self._settle()

    def put_off(self, key: TrialKey, delay: float) -> None:
        """As `retry`, and begin no other trial before: whatever refused this one would refuse them all."""
        self._calm_at = max(self._calm_at, anyio.current_time() + delay)
        self.retry(key, delay)

    @property
    def is_calm(self) -> bool:
        """Whether trials may begin now."""
        return anyio.current_time() >= self._calm_at

    def finished(self) -> None:
        """A trial that was handed out is over."""
        self._settle()

    def _settle(self) -> None:
        self._in_flight -= 1
        self._changed.set()

    async def _next(self) -> TrialKey | None:
        """The next trial to try; None when there will be none."""
        while True:
            key = (self._due() or next(self._pending, None)) if self.is_calm else None
            if key is not None:
                self._in_flight += 1
                return key
            if self.is_calm and not self._in_flight and not self._again:
                return None
            await self._wait()

    def _due(self) -> TrialKey | None:
        if self._again and self._again[0][0] <= anyio.current_time():
            return heapq.heappop(self._again)[1]
        return None

    async def _wait(self) -> None:
        """Until a trial is over, or the first back-off is."""
        until = max(self._again[0][0], self._calm_at) if self._again else float("inf")
        with anyio.CancelScope(deadline=until):
            await self._changed.wait()
        self._changed = anyio.Event()
