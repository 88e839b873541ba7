"""An event loop whose clock stops while its process is suspended.

After a suspension, or without a turn on a busy machine, every deadline would have passed at once and everything would
seem late. So the loop's clock leaves out the seconds in which the loop should have turned and did not: deadlines,
back-offs and waits do not see them. Wall-clock times are not affected.
"""

import asyncio
import selectors
import time
from typing import Final

#: Seconds by which a turn of the loop may be late and still count.
LATE_S: Final = 2.0


class _LossSelector(selectors.DefaultSelector):
    """Sums up the seconds in which the loop did not turn."""

    def __init__(self) -> None:
        super().__init__()
        self.lost_s = 0.0
        self._due_at = float("inf")

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        began = self.now()
        self._due_at = began + max(0.0, timeout) if timeout is not None else float("inf")
        events = super().select(timeout)
        self._due_at = self.now()
        return events

    def now(self) -> float:
        """Return the machine's monotonic time, and count what is lost since `_due_at`."""
        now = time.monotonic()
        if now - self._due_at > LATE_S:
            self.lost_s += now - self._due_at
            self._due_at = now
        return now


class AwakeLoop(asyncio.SelectorEventLoop):
    """The event loop of sweeps and services."""

    def __init__(self) -> None:
        self._losses = _LossSelector()
        super().__init__(self._losses)

    def time(self) -> float:
        now = self._losses.now()
        return now - self._losses.lost_s
