"""Feeds the bounded queue: pending trials one at a time, and those to be tried again when their back-off is over.

Nothing is created for a trial before a worker can take it, so memory does not grow with the benchmark; a back-off is an
entry in a heap, and holds neither a worker nor a devbox. The next trial is of the arm with the fewest in flight: taken
in turn, the trials of a slow arm would come to hold every devbox.
"""

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import filterfalse

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from orchestrator.core.config import ArmConfig
from orchestrator.core.records import TrialKey
from orchestrator.engine.budgets import arm_used_up
from orchestrator.engine.context import Context
from orchestrator.engine.shutdown import Stopping


@dataclass(slots=True, kw_only=True)
class Lane:
    """The trials of one arm. `at_once` may be in flight; `used_up` says why none is to be started any more, or None."""

    pending: Iterator[TrialKey]
    at_once: float = float("inf")
    used_up: Callable[[], str | None] = lambda: None
    in_flight: int = 0
    #: How many were handed out so far.
    begun: int = 0
    #: When to try which again.
    again: list[tuple[float, TrialKey]] = field(default_factory=list)

    def take(self) -> TrialKey | None:
        """The next trial that may begin now, if there is one; it is in flight then."""
        key = self._next()
        if key is not None:
            self.in_flight += 1
            self.begun += 1
        return key

    def _next(self) -> TrialKey | None:
        if self.in_flight >= self.at_once or self.used_up() is not None:
            return None
        if self.again and self.again[0][0] <= anyio.current_time():
            return heapq.heappop(self.again)[1]
        return next(self.pending, None)

    @property
    def due_at(self) -> float:
        """The loop's time at which the first back-off is over."""
        return self.again[0][0] if self.again and self.used_up() is None else float("inf")

    def owed(self) -> str | None:
        """Why trials are left that will not be started; None if none is."""
        reason = self.used_up()
        return reason if reason is not None and (self.again or next(self.pending, None) is not None) else None


def lanes_of(ctx: Context, pending: Mapping[str, Iterator[TrialKey]]) -> dict[str, Lane]:
    """The lanes of a sweep, by arm, with the limits that its arms have."""

    def lane(arm: ArmConfig) -> Lane:
        return Lane(
            pending=pending[arm.name],
            at_once=arm.agents or float("inf"),
            used_up=lambda: arm_used_up(arm, ctx.ledger),
        )

    return {arm.name: lane(arm) for arm in ctx.config.arms}


class Scheduler:
    """A lane's `pending` is asked for the next trial only when the queue has room for it.

    `left` are trials of it whose devboxes an earlier process left behind: handed out first, and though we are stopping,
    for they are in flight already.
    """

    def __init__(self, lanes: Mapping[str, Lane], stopping: Stopping, left: Collection[TrialKey] = ()) -> None:
        self._left = left
        self._lanes = lanes
        for lane in lanes.values():
            lane.pending = filterfalse(frozenset(left).__contains__, lane.pending)
        self._stopping = stopping
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
                self._lanes[left.arm].in_flight += 1
                await queue.send(left)
            with self._stopping.until_draining():
                while (key := await self._next()) is not None:
                    await queue.send(key)
                for reason in filter(None, [lane.owed() for lane in self._lanes.values()]):
                    self._stopping.drain(reason)
        self.is_feeding = False

    def retry(self, key: TrialKey, delay: float) -> None:
        """Try this trial again, in `delay` seconds."""
        heapq.heappush(self._lanes[key.arm].again, (anyio.current_time() + delay, key))
        self.finished(key)

    def put_off(self, key: TrialKey, delay: float) -> None:
        """Retry a trial, and begin no other before it: the same cause would refuse them all."""
        self._calm_at = max(self._calm_at, anyio.current_time() + delay)
        self.retry(key, delay)

    @property
    def is_calm(self) -> bool:
        """Tell whether no trial is deferred for a refusal."""
        return anyio.current_time() >= self._calm_at

    def may_begin(self, key: TrialKey) -> bool:
        """Tell whether a trial that was handed out may still begin: starts may have been refused, or a budget spent."""
        return self.is_calm and self._lanes[key.arm].used_up() is None

    def finished(self, key: TrialKey) -> None:
        """A trial that was handed out is over, for now at least."""
        self._lanes[key.arm].in_flight -= 1
        self._changed.set()

    async def _next(self) -> TrialKey | None:
        """The next trial to try; None when there will be none."""
        while True:
            if self.is_calm:
                for lane in sorted(self._lanes.values(), key=lambda lane: (lane.in_flight, lane.begun)):
                    if (key := lane.take()) is not None:
                        return key
            due_at = min((lane.due_at for lane in self._lanes.values()), default=float("inf"))
            if self.is_calm and due_at == float("inf") and not any(lane.in_flight for lane in self._lanes.values()):
                return None
            with anyio.CancelScope(deadline=due_at if self.is_calm else self._calm_at):
                await self._changed.wait()
            self._changed = anyio.Event()
