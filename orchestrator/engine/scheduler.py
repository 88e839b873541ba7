"""Feeds the bounded queue: pending trials one at a time, and those to be tried again when their back-off is over.

Nothing is created for a trial before a worker can take it, so memory does not grow with the benchmark; a back-off is an
entry in a heap, and holds neither a worker nor a devbox.
"""

import heapq
from collections.abc import Iterator

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from orchestrator.engine.shutdown import Stopping
from orchestrator.model import TrialKey


class Scheduler:
    """`pending` is asked for the next trial only when the queue has room for it."""

    def __init__(self, pending: Iterator[TrialKey], stopping: Stopping) -> None:
        self._pending = pending
        self._stopping = stopping
        self._again: list[tuple[float, TrialKey]] = []
        self._in_flight = 0
        self._changed = anyio.Event()

    async def feed(self, queue: MemoryObjectSendStream[TrialKey]) -> None:
        """Fill the queue until every trial is finished or a stop begins; then close it."""
        async with queue, anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_for_stop, tasks.cancel_scope)
            while (key := await self._next()) is not None:
                await queue.send(key)
            tasks.cancel_scope.cancel()

    def retry(self, key: TrialKey, delay: float) -> None:
        """Try this trial again, in `delay` seconds."""
        heapq.heappush(self._again, (anyio.current_time() + delay, key))
        self._settle()

    def finished(self) -> None:
        """A trial that was handed out is over."""
        self._settle()

    def _settle(self) -> None:
        self._in_flight -= 1
        self._changed.set()

    async def _next(self) -> TrialKey | None:
        """The next trial to try; None when there will be none."""
        while True:
            key = self._due() or next(self._pending, None)
            if key is not None:
                self._in_flight += 1
                return key
            if not self._in_flight and not self._again:
                return None
            await self._wait()

    def _due(self) -> TrialKey | None:
        if self._again and self._again[0][0] <= anyio.current_time():
            return heapq.heappop(self._again)[1]
        return None

    async def _wait(self) -> None:
        """Until a trial is over, or the first back-off is."""
        until = self._again[0][0] if self._again else float("inf")
        with anyio.CancelScope(deadline=until):
            await self._changed.wait()
        self._changed = anyio.Event()

    async def _watch_for_stop(self, scope: anyio.CancelScope) -> None:
        await self._stopping.wait_draining()
        scope.cancel()
