"""The observers of a sweep that runs here: they read what the engine has written, and it never waits for them.

A mistake in an observer is told in the sweep's log, and the sweep goes on.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import structlog

from orchestrator.commands.live_status import LiveStatus
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.printable import shortened
from orchestrator.core.records import TrialKey
from orchestrator.engine.context import Context
from orchestrator.rundir.journal import now
from orchestrator.view import telemetry
from orchestrator.view.alerts import Alert, AlertKind, NightWatch, Surroundings
from orchestrator.view.notify import LONGEST, Notifications, Notifier, compose, in_thread

#: The time between two looks.
LOOK_S: Final = 2.0
#: The time for the last notification, and for the last spans; after a second Ctrl-C all must be over soon.
LAST_S: Final = 10.0
LAST_SPANS_S: Final = 5.0
LAST_CANCELED_S: Final = 2.0
#: The time in which a disk must say how much of it is free.
DISK_S: Final = 5.0


@asynccontextmanager
async def observing(
    state: LiveStatus,
    ctx: Context,
    plan: Plan,
    chosen: Collection[TrialKey],
    *,
    notifiers: Sequence[Notifier],
    say: Callable[[str], None],
) -> AsyncIterator[None]:
    """Inside, the sweep is observed by all who asked for it; its end too. `chosen` are the trials that are to run."""

    def patience() -> float:
        return LAST_CANCELED_S if state.stopping.is_canceled else LAST_S

    asked = telemetry.wanted(os.environ)
    if asked.problem:
        say(asked.problem)
    async with (
        _sending(state, ctx, asked, patience, say) if asked else nullcontext(),
        _telling(state, ctx, plan, chosen, notifiers, patience, say) if notifiers else nullcontext(),
    ):
        yield


@asynccontextmanager
async def _sending(
    state: LiveStatus, ctx: Context, asked: telemetry.Wanted, patience: Callable[[], float], say: Callable[[str], None]
) -> AsyncIterator[None]:
    """Inside, follow the journal, and send spans and metrics of what it says."""
    loop, is_told = asyncio.get_running_loop(), False

    def tell_once(why: str) -> None:
        nonlocal is_told
        if not is_told:
            is_told = True
            say(f"OpenTelemetry: {why.rstrip('.')}. More of its failures are in sweep.log only.")

    def complain(words: str) -> None:
        why = shortened(ctx.redactor.text(words), LONGEST)
        structlog.get_logger().warning("telemetry.failed", error=why)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell_once, why)

    follower = telemetry.Follower(ctx.folder, asked, push_backs=lambda: state.limits.push_backs, complain=complain)
    follower.start()
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True), _harmless():
            await in_thread(partial(follower.stop, min(LAST_SPANS_S, patience())))


@asynccontextmanager
async def _telling(
    state: LiveStatus,
    ctx: Context,
    plan: Plan,
    chosen: Collection[TrialKey],
    notifiers: Sequence[Notifier],
    patience: Callable[[], float],
    say: Callable[[str], None],
) -> AsyncIterator[None]:
    """Inside, tell the notifiers of a night that goes badly, and at the end how it ended.

    A sweep that had nothing to do has not ended now, and nobody is told.
    """
    notifications = Notifications(notifiers, mask=ctx.redactor.value, say=say)

    def tell(alert: Alert) -> None:
        notifications.tell(compose(alert, sweep=ctx.sweep, folder=ctx.folder, ledger=ctx.ledger, plan=plan))

    night, began, started = NightWatch(ctx.ledger, plan, chosen), anyio.current_time(), time.time()

    def look(free: int | None = None, size: int = 0) -> None:
        seen = Surroundings(
            config=state.budgets.config,
            now=now(),
            elapsed=anyio.current_time() - began,
            started=started,
            deadline=state.budgets.deadline,
            halted=state.stopping.reason if state.stopping.is_halted else None,
            free=free,
            size=size,
        )
        with _harmless():
            for alert in night.look(seen):
                tell(alert)

    async def watch() -> None:
        while True:
            look(*await _room(ctx.folder))
            await anyio.sleep(LOOK_S)

    has_work = any(key in chosen for key in plan.pending(ctx.ledger))
    look()
    async with notifications.delivering(patience), anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()
            look()
            with _harmless():
                if has_work:
                    tell(_end(ctx.ledger))


@contextmanager
def _harmless() -> Iterator[None]:
    """Log a mistake of ours and go on: the sweep is worth more than what is told of it."""
    try:
        yield
    except Exception:  # noqa: BLE001 - whatever it is
        structlog.get_logger().exception("observer.broken")


def _end(ledger: Ledger) -> Alert:
    """How the sweep has ended, as its journal says."""
    ended = ledger.ended or "it broke off: see sweep.log"
    if ended.startswith("finished"):
        return Alert(kind=AlertKind.ENDED, words="")
    return Alert(kind=AlertKind.STOPPED, words=f"{ended[0].upper()}{ended[1:]}.")


async def _room(folder: Path) -> tuple[int | None, int]:
    """The free bytes of the run folder's disk, None if it does not say, and its size."""
    found: list[os.statvfs_result] = []
    with suppress(OSError), anyio.move_on_after(DISK_S):
        await in_thread(lambda: found.append(os.statvfs(folder)))
    return (found[0].f_bavail * found[0].f_frsize, found[0].f_blocks * found[0].f_frsize) if found else (None, 0)
