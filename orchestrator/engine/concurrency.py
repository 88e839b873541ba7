"""Limits of concurrency. The devbox limit is halved when the endpoint pushes back, and then grows again, one by one."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import anyio

#: Seconds without being throttled before the devbox limit grows by one.
CALM_S: Final = 30.0


class Limits:
    """At most `devboxes` in flight and `agents` solving."""

    def __init__(self, *, devboxes: int, agents: int | None) -> None:
        self._most = devboxes
        self._devboxes = anyio.CapacityLimiter(devboxes)
        self._agents = anyio.CapacityLimiter(agents or devboxes)
        self._changed_at = float("-inf")
        self._on_growth: Callable[[int], None] = lambda _: None
        #: The number of times that the endpoint asked for less.
        self.push_backs = 0

    @contextmanager
    def growing(self, grow: Callable[[int], None]) -> Iterator[None]:
        """Inside, call `grow` with the number of devboxes that may be in flight at most, when that is set higher."""
        before, self._on_growth = self._on_growth, grow
        try:
            yield
        finally:
            self._on_growth = before

    def change(self, *, devboxes: int, agents: int | None) -> None:
        """Set both anew; what is in flight above them goes on."""
        grows, self._most = devboxes > self._most, devboxes
        self._devboxes.total_tokens = devboxes
        self._agents.total_tokens = agents or devboxes
        if grows:
            self._on_growth(devboxes)

    @property
    def agents(self) -> int:
        """Number of agents that may work now."""
        return int(self._agents.total_tokens)

    @property
    def devboxes(self) -> int:
        """Number of devboxes that may be in flight now."""
        return int(self._devboxes.total_tokens)

    @property
    def is_reduced(self) -> bool:
        return self.devboxes < self._most

    @asynccontextmanager
    async def devbox(self) -> AsyncIterator[None]:
        """Hold a place for a devbox."""
        now = anyio.current_time()
        if self.is_reduced and now - self._changed_at >= CALM_S:
            self._devboxes.total_tokens = self.devboxes + 1
            self._changed_at = now
        async with self._devboxes:
            yield

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[float]:
        """Hold a place for an agent; yields the seconds waited for it."""
        asked_at = anyio.current_time()
        async with self._agents:
            yield anyio.current_time() - asked_at

    def push_back(self) -> None:
        """Halve the devboxes because the endpoint asks for less, at most once in `CALM_S`."""
        self.push_backs += 1
        now = anyio.current_time()
        if now - self._changed_at >= CALM_S or not self.is_reduced:
            self._devboxes.total_tokens = max(1, self.devboxes // 2)
            self._changed_at = now
