"""A thread that notices when the event loop no longer turns, and when nothing turned because the machine slept.

Why not a task: a task of a loop that is stuck says nothing. What keeps the loop is on the main thread's stack, which is
written down while it does.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

#: Seconds without a turn of the loop after which it is called stuck.
PATIENCE_S: Final = 10.0
#: Seconds by which a look may be late before that was sleep: a starved machine is late, too.
LATE_S: Final = 5.0


class Watchdog:
    """`on_sleep` is called in the loop with the seconds that the machine, or this process, stood still."""

    def __init__(self, on_sleep: Callable[[float], None], *, patience: float = PATIENCE_S) -> None:
        self._on_sleep = on_sleep
        self._patience = patience
        self._every = patience / 10
        self._over = threading.Event()
        self._turned_at = time.monotonic()
        self._is_asked = False
        #: When the loop last turned before it got stuck; None while it turns.
        self._stuck_since: float | None = None
        #: What people should know of it; kept after it is over.
        self.notice: str | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the running loop, from outside it."""
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._watch, args=(loop, threading.get_ident()), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, main: int) -> None:
        looked_at = _since_boot()
        self._turned_at = time.monotonic()
        while not self._over.wait(self._every):
            now = _since_boot()
            still = now - looked_at - self._every
            looked_at = now
            try:
                if still > LATE_S:  # nobody looked meanwhile: the time that passed says nothing about the loop
                    self._turned_at = time.monotonic()
                    self.notice = f"the machine slept for {still:.0f} s, or gave this process no time"
                    structlog.get_logger().warning("machine.slept", seconds=round(still, 1))
                    loop.call_soon_threadsafe(self._on_sleep, still)
                self._look(loop, main)
            except RuntimeError:
                return  # the loop is closed

    def _look(self, loop: asyncio.AbstractEventLoop, main: int) -> None:
        if not self._is_asked:
            self._is_asked = True
            loop.call_soon_threadsafe(self._turn)
        idle = time.monotonic() - self._turned_at
        if idle < self._patience:
            if self._stuck_since is not None:
                seconds, self._stuck_since = self._turned_at - self._stuck_since, None
                self.notice = f"the event loop was stuck for {seconds:.0f} s, and moves again"
                structlog.get_logger().warning("loop.moves_again", seconds=round(seconds, 1))
                sys.stderr.write(f"sweep: {self.notice}.\n")
        elif self._stuck_since is None:
            self._stuck_since = self._turned_at
            stack = traceback.extract_stack(sys._current_frames()[main])  # noqa: SLF001 - the documented way
            where = f"{stack[-1].filename}:{stack[-1].lineno} ({stack[-1].name})"
            self.notice = f"the event loop has been stuck for {idle:.0f} s, in {where}"
            frames = [f"{each.filename}:{each.lineno} {each.name}" for each in reversed(stack)]
            structlog.get_logger().error("loop.stuck", seconds=round(idle, 1), stack=frames[:20])
            sys.stderr.write(f"sweep: {self.notice}; see sweep.log.\n")

    def _turn(self) -> None:
        """Runs in the loop."""
        self._turned_at, self._is_asked = time.monotonic(), False


def _since_boot() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
