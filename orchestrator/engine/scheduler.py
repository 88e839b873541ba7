"""Hands trials to the workers: pending ones one at a time, and those to be tried again when their back-off is over.

Nothing is created for a trial before a worker can take it, so memory does not grow with the benchmark; a back-off is an
entry in a heap, and holds neither a worker nor a devbox. The next trial is of the arm with the fewest in flight: if
arms took turns, the trials of a slow arm would come to hold every devbox.
"""

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, filterfalse

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from orchestrator.core.config import ArmConfig
from orchestrator.core.records import TrialKey
from orchestrator.engine.budgets import arm_used_up
from orchestrator.engine.context import Context
from orchestrator.engine.shutdown import Stopping


@dataclass(slots=True, kw_only=True)
class ArmQueue:
    """The trials of one arm. At most `max_in_flight` run at once; `used_up` says why no more may start, or None."""

    pending: Iterator[TrialKey]
    max_in_flight: float = float("inf")
    used_up: Callable[[], str | None] = lambda: None
    #: The trials that workers have, and those of them that are to be handed out once more when they give them back.
    out: set[TrialKey] = field(default_factory=set)
    wanted_again: set[TrialKey] = field(default_factory=set)
    #: The number of trials that were handed out so far.
    begun: int = 0
    #: A heap of the trials to be tried again, by the loop's time.
    retries: list[tuple[float, TrialKey]] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        return len(self.out)

    def take(self) -> TrialKey | None:
        """Hand out the next trial that may begin now; None if there is none."""
        if self.in_flight >= self.max_in_flight or self.used_up() is not None:
            return None
        if self.retries and self.retries[0][0] <= anyio.current_time():
            key: TrialKey | None = heapq.heappop(self.retries)[1]
        else:
            key = next(self.pending, None)
        if key is not None:
            self.out.add(key)
            self.begun += 1
        return key

    @property
    def due_at(self) -> float:
        """The loop's time at which the first back-off is over; never while a trial would have to end before."""
        is_open = self.retries and self.in_flight < self.max_in_flight and self.used_up() is None
        return self.retries[0][0] if is_open else float("inf")

    def is_empty(self) -> bool:
        """Tell if no trial is left to hand out."""
        if self.retries:
            return False
        following = next(self.pending, None)
        if following is not None:
            self.pending = chain([following], self.pending)
        return following is None

    def owed(self) -> str | None:
        """The reason why trials remain that will not start; None if none remain."""
        reason = self.used_up()
        return reason if reason is not None and (self.retries or next(self.pending, None) is not None) else None


def queues_of(ctx: Context, pending: Mapping[str, Iterator[TrialKey]]) -> dict[str, ArmQueue]:
    """The queues of a sweep, by arm, with the limits of its arms."""

    def queue(arm: ArmConfig) -> ArmQueue:
        return ArmQueue(
            pending=pending[arm.name],
            max_in_flight=arm.agents or float("inf"),
            used_up=lambda: arm_used_up(arm, ctx.ledger),
        )

    return {arm.name: queue(arm) for arm in ctx.config.arms}


class Scheduler:
    """Takes the next trial from a queue's `pending` only when a worker has room for it.

    `in_flight_before` are trials whose devboxes an earlier process left: handed out first, and also while stopping.
    """

    def __init__(
        self, queues: Mapping[str, ArmQueue], stopping: Stopping, in_flight_before: Collection[TrialKey] = ()
    ) -> None:
        self._in_flight_before = in_flight_before
        self._queues = queues
        for queue in queues.values():
            queue.pending = filterfalse(frozenset(in_flight_before).__contains__, queue.pending)
        self._stopping = stopping
        #: Nothing is handed out before.
        self._throttled_until = float("-inf")
        #: True while trials are handed out, and while nothing is because a person says so.
        self.is_feeding = False
        self._is_paused = False
        self._changed = anyio.Event()

    async def feed(self, workers: MemoryObjectSendStream[TrialKey]) -> None:
        """Hand trials to the workers until all are finished or a stop begins; then close the stream."""
        self.is_feeding = True
        async with workers:
            for key in self._in_flight_before:
                self._queues[key.arm].out.add(key)
                await workers.send(key)
            with self._stopping.until_draining():
                while (following := await self._next()) is not None:
                    await workers.send(following)
                for reason in filter(None, [queue.owed() for queue in self._queues.values()]):
                    self._stopping.drain(reason)
            self.is_feeding = False

    def retry(self, key: TrialKey, delay: float) -> None:
        """Try this trial again, in `delay` seconds."""
        queue = self._queues[key.arm]
        queue.wanted_again.discard(key)
        heapq.heappush(queue.retries, (anyio.current_time() + delay, key))
        self.finished(key)

    def defer(self, key: TrialKey, delay: float) -> None:
        """Retry a trial, and begin no other before it: the same cause would refuse them all."""
        self._throttled_until = max(self._throttled_until, anyio.current_time() + delay)
        self.retry(key, delay)

    def pause(self, *, is_paused: bool) -> None:
        """Hand out nothing, until this is called again; what was handed out goes on."""
        self._is_paused = is_paused
        self._changed.set()

    def wake(self) -> None:
        """Look again if a trial may begin: limits or budgets were changed."""
        self._changed.set()

    def add(self, key: TrialKey) -> None:
        """Hand out a finished trial once more, before those that were not handed out yet.

        It may have got its result before a worker had it, or while one waits with it for a devbox.
        """
        queue = self._queues[key.arm]
        queue.pending = filterfalse({key}.__contains__, queue.pending)
        if key in queue.out:
            queue.wanted_again.add(key)
        else:
            heapq.heappush(queue.retries, (anyio.current_time(), key))
        self._changed.set()

    def forget(self, keys: Collection[TrialKey]) -> None:
        """Do not retry these trials."""
        for queue in self._queues.values():
            queue.retries = [each for each in queue.retries if each[1] not in keys]
            heapq.heapify(queue.retries)
        self._changed.set()

    @property
    def is_throttled(self) -> bool:
        """True while every start waits because one was refused."""
        return anyio.current_time() < self._throttled_until

    def may_begin(self, key: TrialKey) -> bool:
        """Tell if a trial that was handed out may still begin: starts may have been refused, or a budget spent."""
        return not self.is_throttled and not self._is_paused and self._queues[key.arm].used_up() is None

    def finished(self, key: TrialKey) -> None:
        """Take back a trial that was handed out: it is over, for now at least."""
        queue = self._queues[key.arm]
        queue.out.discard(key)
        if key in queue.wanted_again:
            self.retry(key, 0)
        self._changed.set()

    async def _next(self) -> TrialKey | None:
        """Wait for the next trial to try; None when there will be none."""
        while True:
            queues = self._queues.values()
            if self._is_paused and (any(queue.in_flight for queue in queues) or not all(q.is_empty() for q in queues)):
                await self._changed.wait()
                self._changed = anyio.Event()
                continue
            if not self.is_throttled:
                for queue in sorted(queues, key=lambda queue: (queue.in_flight, queue.begun)):
                    if (key := queue.take()) is not None:
                        return key
            due_at = min((queue.due_at for queue in queues), default=float("inf"))
            if not self.is_throttled and due_at == float("inf") and not any(queue.in_flight for queue in queues):
                return None
            with anyio.CancelScope(deadline=self._throttled_until if self.is_throttled else due_at):
                await self._changed.wait()
            self._changed = anyio.Event()
