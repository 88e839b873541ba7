"""One answer to "are we stopping?".

Stopping has two steps. Draining starts nothing new and lets what is in flight finish, for as long as it may; canceling
ends it, and every attempt releases what it holds. Signals take the steps one by one, a third signal leaves at once; a
budget that is used up, or a fault that is no trial's, drains; a fault that every call would meet cancels.

Signals are counted where they arrive and not in a task, so that the last one ends the process though the event loop is
stuck; and after the second a clock outside the loop sees to it that there is an end.
"""

import asyncio
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

import anyio

from orchestrator.core.errors import SweepError

#: Cancels at once, as a second signal does: what `sweep stop --now` sends.
NOW: Final = signal.SIGUSR1
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, NOW)
#: Seconds that those in flight get after a signal of somebody who may not wait: service managers kill in the end.
UNATTENDED_S: Final = 300.0
#: Seconds from the second signal to the end of the process, whatever hangs.
LAST_S: Final = 9.5
#: Seconds in which signals count as one: who wraps a command, such as timeout(1), signals it and then its group.
AT_ONCE_S: Final = 0.02
EXIT_STATUS: Final = 130


class Stopping:
    """Shared by everybody who starts something or waits for long.

    `ask` is asked whether a budget is used up; it returns the reason to stop for, or None.
    """

    def __init__(self, ask: Callable[[], str | None] = lambda: None) -> None:
        self._ask = ask
        #: Whether nothing new is started.
        self.is_draining = False
        self._waits: set[anyio.CancelScope] = set()
        self._scope: anyio.CancelScope | None = None
        self._is_opening = False
        #: Why nothing new is started, for people; the first reason is kept.
        self.reason: str | None = None
        #: The loop's time at which draining becomes canceling.
        self.ends_at = float("inf")
        #: Why the sweep as a whole cannot go on, if it cannot.
        self.fault: SweepError | None = None
        #: Whether somebody asked for it, rather than a budget or a fault.
        self.is_by_signal = False

    @property
    def is_canceled(self) -> bool:
        """Tell whether trials in flight are being ended."""
        return anyio.current_time() >= self.ends_at

    @contextmanager
    def until_draining(self) -> Iterator[None]:
        """Cancel the block once no new trial may start."""
        with anyio.CancelScope() as scope:
            self._waits.add(scope)
            if self.is_draining:
                scope.cancel()
            try:
                yield
            finally:
                self._waits.discard(scope)

    def may_start(self) -> bool:
        """Tell whether a trial may start now. Budgets are checked each time, so that they hold to the trial."""
        self.check()
        return not self.is_draining

    def check(self) -> None:
        """Drain if a budget is used up."""
        reason = None if self.is_draining else self._ask()
        if reason is not None:
            self.drain(reason)

    def open(self, scope: anyio.CancelScope) -> None:
        """Name the scope that any stop ends at once, while nothing is in flight yet."""
        self.bind(scope)
        self._is_opening = True

    def bind(self, scope: anyio.CancelScope) -> None:
        """Name the scope that `cancel` ends: everything in flight is inside."""
        self._scope, self._is_opening = scope, False
        scope.deadline = min(scope.deadline, self.ends_at)

    def drain(self, reason: str = "stopped", *, within: float = float("inf")) -> None:
        """Start nothing new; what is in flight finishes, or is canceled in `within` seconds."""
        self.reason = self.reason or reason
        self.ends_at = min(self.ends_at, anyio.current_time() + within)
        self.is_draining = True
        for wait in self._waits:
            wait.cancel()
        if self._scope is not None:
            self._scope.deadline = min(self._scope.deadline, self.ends_at)
            if self._is_opening:
                self._scope.cancel()

    def cancel(self, reason: str = "stopped") -> None:
        """End what is in flight; each attempt releases what it holds, within bounds."""
        self.drain(reason, within=float("-inf"))

    def fail(self, fault: SweepError) -> None:
        """Stop for a fault that every other trial would meet too. The first one is kept."""
        self.fault = self.fault or fault
        self.cancel(fault.message)


@contextmanager
def obeying_signals(stopping: Stopping, *, drain: float | None, leave: Callable[[], None]) -> Iterator[None]:
    """Inside, the first signal drains, the second cancels, the third leaves at once, after a last call of `leave`.

    `drain` bounds draining, in seconds; None: no bound after a Ctrl-C at a terminal, 5 minutes otherwise. A signal that
    whoever started us has us ignore, as nohup(1) does, stays ignored.
    """
    obeying = _Obeying(stopping, drain, leave)
    ours = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, obeying.hear) for each in ours}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        obeying.end()


class _Obeying:
    """Counts signals and acts on them; its thread ends the process when the time for ending it is over."""

    def __init__(self, stopping: Stopping, drain: float | None, leave: Callable[[], None]) -> None:
        self._stopping = stopping
        self._drain = drain
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._heard_at = float("-inf")
        #: By when the process must have ended, by the monotonic clock; None: no need any more. Its `put` is reentrant.
        self._last_moments: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        threading.Thread(target=self._see_to_the_end, name="last moments", daemon=True).start()

    def hear(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: runs wherever the main thread is, whether its loop still turns or not."""
        now = time.monotonic()
        if now - self._heard_at < AT_ONCE_S:
            return
        self._heard_at = now
        self._count = max(2, self._count + 1) if number == NOW else self._count + 1
        if self._count == 2:
            self._last_moments.put(now + LAST_S)
        elif self._count > 2:
            self._exit()
        self._loop.call_soon_threadsafe(
            self._loop.call_later, AT_ONCE_S, self._act, self._count, signal.Signals(number)
        )

    def end(self) -> None:
        self._last_moments.put(None)

    def _act(self, count: int, which: signal.Signals) -> None:
        self._stopping.is_by_signal = True
        name = "sweep stop --now" if which is NOW else which.name
        if count == 2:
            self._stopping.cancel(name)
            return
        is_attended = which is signal.SIGINT and any(map(os.isatty, (0, 1, 2)))
        within = self._drain if self._drain is not None else float("inf") if is_attended else UNATTENDED_S
        self._stopping.drain(name, within=within)
        if within < float("inf"):
            self._last_moments.put(time.monotonic() + within + LAST_S)

    def _see_to_the_end(self) -> None:
        last = float("inf")
        while True:
            left = None if last == float("inf") else max(0.0, last - time.monotonic())
            try:
                moment = self._last_moments.get(timeout=left)
            except queue.Empty:
                self._exit()
            if moment is None:
                return
            last = min(last, moment)

    def _exit(self) -> NoReturn:
        self._leave()
        os._exit(EXIT_STATUS)
