"""Notices standstills: an event loop that no longer turns, a machine that slept, an endpoint that does not answer.

The loop is watched by a thread, because a task of a loop that is stuck says nothing. What keeps the loop is on the main
thread's stack, which is written down while it does.

Time in which the endpoint does not answer counts for no stage. A service that is suspended, restarted or cut off would
otherwise use up the time limits of all that is in flight, and discard work that continues in its devboxes. So the
deadlines of stages move while it is silent; if that takes too long, the sweep stops, and a resume finds everything as
it was.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import anyio
import structlog

from orchestrator.core.errors import WorldError
from orchestrator.endpoint.protocols import Endpoint

#: Seconds without a turn of the loop after which it is called stuck.
PATIENCE_S: Final = 10.0
#: Seconds by which a look may be late before that was sleep: a starved machine is late, too.
LATE_S: Final = 5.0
#: Seconds between two looks at the endpoint.
LOOK_EVERY_S: Final = 1.0
#: Seconds without an answer after which one is asked for, and after which the endpoint is called silent.
ASK_S: Final = 5.0
SILENT_S: Final = 8.0


class Watchdog:
    """Watches the event loop. `on_sleep` is called in it with the seconds that the machine, or this process, slept."""

    def __init__(self, on_sleep: Callable[[float], None], *, patience: float = PATIENCE_S) -> None:
        self._on_sleep = on_sleep
        self._patience = patience
        self._every = patience / 10
        self._over = threading.Event()
        self._turned_at = time.monotonic()
        self._is_asked = False
        #: The last turn of the loop before it got stuck; None while it turns.
        self._stuck_since: float | None = None
        #: The latest standstill, for people; kept after it is over.
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
        def turn() -> None:
            self._turned_at, self._is_asked = time.monotonic(), False

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
                if not self._is_asked:
                    self._is_asked = True
                    loop.call_soon_threadsafe(turn)
            except RuntimeError:
                return  # the loop is closed
            self._judge(main)

    def _judge(self, main: int) -> None:
        """Report a loop that got stuck, with the stack of its thread `main`, or that moves again."""
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


def _since_boot() -> float:
    """Seconds by a clock that counts while the machine sleeps, where the system has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Silence:
    """Watches the endpoint. `limited(seconds)` is a stage's time limit; `watch` runs meanwhile."""

    def __init__(self, endpoint: Endpoint, *, unreachable: float = 1800.0) -> None:
        self._endpoint = endpoint
        self._unreachable = unreachable
        self._scopes: set[anyio.CancelScope] = set()
        self._is_asking = False
        #: Seconds by which the deadlines were moved for the present silence.
        self._moved = 0.0
        #: True once the sweep stops for it: attempts in flight stay as they are, for a resume.
        self.has_given_up = False

    @property
    def seconds(self) -> float:
        """Seconds without an answer; 0 while the endpoint answers, or nobody waits for it."""
        silent = anyio.current_time() - self._endpoint.answered_at
        return silent if self._scopes and silent >= SILENT_S else 0.0

    @contextmanager
    def limited(self, seconds: float) -> Iterator[anyio.CancelScope]:
        """Raise TimeoutError after so many seconds in which the endpoint answered. Yields the scope of the limit."""
        with anyio.fail_after(seconds) as scope, self.moving(scope):
            yield scope

    @contextmanager
    def moving(self, scope: anyio.CancelScope) -> Iterator[None]:
        """Move the deadline of a scope while the endpoint is silent."""
        self._scopes.add(scope)
        try:
            yield
        finally:
            self._scopes.discard(scope)

    async def watch(self, give_up: Callable[[str], None]) -> None:
        """Move the deadlines while the endpoint is silent; call `give_up` with the reason when that takes too long.

        Runs until it is canceled.
        """

        async def ask() -> None:
            with suppress(WorldError, TimeoutError), anyio.fail_after(SILENT_S):
                await self._endpoint.ping()
            self._is_asking = False

        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.sleep(LOOK_EVERY_S)
                if self._scopes and not self._is_asking and anyio.current_time() - self._endpoint.answered_at >= ASK_S:
                    self._is_asking = True
                    tasks.start_soon(ask)
                moved, self._moved = self._moved, self.seconds
                if self._moved > moved:
                    for scope in self._scopes:
                        scope.deadline += self._moved - moved
                if self.seconds > self._unreachable:
                    self.has_given_up = True
                    give_up(f"the endpoint has not answered for {self.seconds / 60:.0f} minutes. Check that it is up")
                    return
