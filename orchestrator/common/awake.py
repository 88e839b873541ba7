"""An event loop whose clock stands still while its process does.

Whoever was suspended, or got no time from a busy machine, would otherwise find every deadline passed when it goes on,
and would call everybody late but itself. So seconds in which the loop did not turn, although it should have, are none:
no deadline, back-off or wait knows of them. Wall-clock times are others' business.
"""

import asyncio
import selectors
import time
from typing import Final

#: Seconds by which a turn of the loop may be late and is just late.
LATE: Final = 2.0


class _Noticing(selectors.DefaultSelector):
    """Adds up the seconds in which nobody was there."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0.0
        self._due_at = float("inf")

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        began = self.notice()
        self._due_at = began + max(0.0, timeout) if timeout is not None else float("inf")
        events = super().select(timeout)
        self._due_at = self.notice()
        return events

    def notice(self) -> float:
        """The time by the machine's clock. The loop should have been here at `_due_at`, or a moment later."""
        now = time.monotonic()
        if now - self._due_at > LATE:
            self.lost += now - self._due_at
            self._due_at = now
        return now


class AwakeLoop(asyncio.SelectorEventLoop):
    """The loop that sweeps and services run on."""

    def __init__(self) -> None:
        self._noticing = _Noticing()
        super().__init__(self._noticing)

    def time(self) -> float:
        now = self._noticing.notice()
        return now - self._noticing.lost
