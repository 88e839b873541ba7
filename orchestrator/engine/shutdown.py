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
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

import anyio

from orchestrator.core.errors import SweepError

#: The signal of `sweep stop --now`: it cancels at once, as a second signal does.
NOW: Final = signal.SIGUSR1
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, NOW)
#: Seconds for the trials in flight after a signal that is no Ctrl-C: service managers kill in the end.
UNATTENDED_S: Final = 300.0
#: Seconds from the second signal to the end of the process, whatever hangs.
EXIT_GRACE_S: Final = 9.5
#: Seconds in which signals count as one: timeout(1), for example, signals its command and then its group.
SAME_SIGNAL_S: Final = 0.02
EXIT_STATUS: Final = 130


class Stopping:
    """Shared by all parts that start something or wait for long.

    `ask` returns the reason to stop if a budget is used up, else None.
    """

    def __init__(self, ask: Callable[[], str | None] = lambda: None) -> None:
        self._ask = ask
        #: True once nothing new is started.
        self.is_draining = False
        self._waits: set[anyio.CancelScope] = set()
        self._scope: anyio.CancelScope | None = None
        self._is_opening = False
        #: The reason why nothing new is started, for people; the first one is kept.
        self.reason: str | None = None
        #: The loop's time at which draining becomes canceling.
        self.ends_at = float("inf")
        #: The fault that stops the whole sweep, if one did.
        self.fault: SweepError | None = None
        #: True if a signal asked for it, rather than a budget or a fault.
        self.is_by_signal = False
        #: True if trials failed in a way that others would, too.
        self.is_halted = False

    @property
    def is_canceled(self) -> bool:
        """True once trials in flight are being ended."""
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
        """Tell if a trial may start now. Budgets are checked each time, so that they hold to the trial."""
        self.check()
        return not self.is_draining

    def check(self) -> None:
        """Drain if a budget is used up."""
        reason = None if self.is_draining else self._ask()
        if reason is not None:
            self.drain(reason)

    def open(self, scope: anyio.CancelScope) -> None:
        """Set the scope that any stop ends at once, while nothing is in flight yet."""
        self.bind(scope)
        self._is_opening = True

    def bind(self, scope: anyio.CancelScope) -> None:
        """Set the scope that `cancel` ends: everything in flight is inside."""
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

    def halt(self, reason: str) -> None:
        """Drain because trials failed in a way that others would, too."""
        self.is_halted = True
        self.drain(reason)

    def cancel(self, reason: str = "stopped") -> None:
        """End what is in flight; each attempt releases what it holds, within bounds."""
        self.drain(reason, within=float("-inf"))

    def fail(self, fault: SweepError) -> None:
        """Stop for a fault that every other trial would meet too. The first one is kept."""
        self.fault = self.fault or fault
        self.cancel(fault.message)


@contextmanager
def obeying_signals(
    stopping: Stopping,
    *,
    drain: float | None,
    leave: Callable[[], None],
    signals: Collection[signal.Signals] = SIGNALS,
) -> Iterator[None]:
    """Inside, the first signal drains, the second cancels, the third exits at once, after a last call of `leave`.

    `drain` bounds draining, in seconds; None: no bound after a Ctrl-C at a terminal, 5 minutes otherwise. A signal that
    was ignored when we started, as under nohup(1), stays ignored. Without `signals` nothing is taken over, as in a
    program that has handlers of its own, or in a thread, which may have none.
    """
    if not signals:
        yield
        return
    obeying = _Obeying(stopping, drain, leave)
    ours = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, obeying.on_signal) for each in ours}
    try:
        with _waking(asyncio.get_running_loop()):
            yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        obeying.end()


@contextmanager
def _waking(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Inside, a signal wakes the loop: Python handlers run between instructions of the main thread only.

    A signal that arrives in another thread, or just before the loop waits for its next event, would wait with it.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.settimeout(0)
        writer.settimeout(0)
        loop.add_reader(reader, reader.recv, 64)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(reader)


class _Obeying:
    """Counts signals and acts on them; its thread ends the process when the time for ending it is over."""

    def __init__(self, stopping: Stopping, drain: float | None, leave: Callable[[], None]) -> None:
        self._stopping = stopping
        self._drain = drain
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._signaled_at = float("-inf")
        #: The monotonic time by which the process must have ended; None: it has. Its `put` is reentrant.
        self._deadlines: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        threading.Thread(target=self._enforce_deadline, name="deadline", daemon=True).start()

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: runs wherever the main thread is, whether its loop still turns or not."""
        now = time.monotonic()
        if now - self._signaled_at < SAME_SIGNAL_S:
            return
        self._signaled_at = now
        self._count = max(2, self._count + 1) if number == NOW else self._count + 1
        if self._count == 2:
            self._deadlines.put(now + EXIT_GRACE_S)
        elif self._count > 2:
            self._exit()
        self._loop.call_soon_threadsafe(
            self._loop.call_later, SAME_SIGNAL_S, self._act, self._count, signal.Signals(number)
        )

    def end(self) -> None:
        self._deadlines.put(None)

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
            self._deadlines.put(time.monotonic() + within + EXIT_GRACE_S)

    def _enforce_deadline(self) -> None:
        last = float("inf")
        while True:
            left = None if last == float("inf") else max(0.0, last - time.monotonic())
            try:
                moment = self._deadlines.get(timeout=left)
            except queue.Empty:
                self._exit()
            if moment is None:
                return
            last = min(last, moment)

    def _exit(self) -> NoReturn:
        self._leave()
        os._exit(EXIT_STATUS)
