"""One answer to "are we stopping?".

The first signal drains, the second cancels; a fault that every trial would meet cancels too.
"""

import signal
from collections.abc import Callable

import anyio

from orchestrator.errors import SweepError


class Stopping:
    """Shared by everybody who starts something or waits for long."""

    def __init__(self) -> None:
        self._draining = anyio.Event()
        self._scope: anyio.CancelScope | None = None
        #: Why the sweep as a whole cannot go on, if it cannot.
        self.fault: SweepError | None = None
        self.is_canceled = False

    @property
    def is_draining(self) -> bool:
        return self._draining.is_set()

    async def wait_draining(self) -> None:
        await self._draining.wait()

    def bind(self, scope: anyio.CancelScope) -> None:
        """Name the scope that `cancel` ends: everything in flight is inside."""
        self._scope = scope
        if self.is_canceled:
            scope.cancel()

    def drain(self) -> None:
        """Start nothing new; what is in flight finishes."""
        self._draining.set()

    def cancel(self) -> None:
        """End what is in flight; each attempt releases what it holds, within bounds."""
        self.drain()
        self.is_canceled = True
        if self._scope is not None:
            self._scope.cancel()

    def fail(self, fault: SweepError) -> None:
        """Stop for a fault that every other trial would meet too. The first one is kept."""
        self.fault = self.fault or fault
        self.cancel()


async def obey_signals(stopping: Stopping, say: Callable[[str], None]) -> None:
    """First SIGINT or SIGTERM: drain. Second: cancel. Runs until canceled."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if not stopping.is_draining:
                say("Stopping: no new trials, those in flight finish. Press Ctrl-C again to end them now.")
                stopping.drain()
            else:
                say("Ending the agents and releasing the devboxes.")
                stopping.cancel()
                return
