"""Takes trials until there are none; one attempt's failure never ends it."""

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream

from orchestrator.core.errors import InternalError, Requeued, SweepError, SweepHalted
from orchestrator.core.records import TrialKey
from orchestrator.engine import lifecycle, resume
from orchestrator.engine.context import Context, InFlight
from orchestrator.engine.scheduler import Scheduler
from orchestrator.engine.shutdown import Stopping


async def serve(
    ctx: Context, scheduler: Scheduler, queue: MemoryObjectReceiveStream[TrialKey], stopping: Stopping
) -> None:
    """Try the trials of the queue, to its end. A fault that concerns every trial stops the sweep."""
    async with queue:
        async for key in queue:
            try:
                await _serve_one(ctx, scheduler, key, stopping)
            except SweepHalted as halted:
                stopping.halt(halted.message)
            except SweepError as error:
                stopping.fail(error)
            except Exception as error:  # noqa: BLE001 - a mistake of ours must stop the sweep, whatever it is
                structlog.get_logger().exception("worker.broken", trial=str(key))
                words = ctx.redactor.text(f"{type(error).__name__}: {error}")
                stopping.fail(InternalError(f"{words} (in trial {key}; see sweep.log)"))


async def _serve_one(ctx: Context, scheduler: Scheduler, key: TrialKey, stopping: Stopping) -> None:
    with stopping.until_draining():
        await ctx.sink.wait_writable()
    async with ctx.limits.devbox():
        if ctx.ledger.is_finished(key):  # it was given up while it waited
            scheduler.finished(key)
            return
        if not ctx.ledger.has_run(key):
            if not stopping.may_start():
                return
            if not scheduler.may_begin(key):
                scheduler.retry(key, 0)
                return
        flight, decision = InFlight(), None
        ctx.in_flight[key] = flight
        try:
            with structlog.contextvars.bound_contextvars(trial=str(key)), flight.scope:
                decision = await lifecycle.attempt(ctx, key)
        finally:
            del ctx.in_flight[key]
    if flight.ended_by is not None and not ctx.ledger.is_finished(key):
        if isinstance(flight.ended_by, Requeued):
            scheduler.retry(key, 0)
            return
        await lifecycle.give_up(ctx, {key: flight.ended_by})
        decision = None
    if decision is None:
        scheduler.finished(key)
        return
    if decision.is_push_back:
        ctx.limits.push_back()
    again = scheduler.defer if decision.defers_all else scheduler.retry
    again(key, decision.delay)


async def run_all(ctx: Context, scheduler: Scheduler, stopping: Stopping) -> None:
    """Reconcile with the endpoint, run every trial of the scheduler, and reconcile again.

    There are as many workers as there ever may be devboxes in flight.
    """
    send, receive = anyio.create_memory_object_stream[TrialKey](0)
    async with anyio.create_task_group() as tasks:
        stopping.bind(tasks.cancel_scope)
        tasks.start_soon(ctx.silence.watch, stopping.cancel)
        await resume.reconcile(ctx)
        async with anyio.create_task_group() as workers, receive:
            hired = 0

            def hire(wanted: int) -> None:
                nonlocal hired
                for _ in range(wanted - hired):
                    workers.start_soon(serve, ctx, scheduler, receive.clone(), stopping)
                hired = max(hired, wanted)

            hire(ctx.config.devboxes)
            with ctx.limits.growing(hire):
                await scheduler.feed(send)
        await resume.reconcile(ctx)
        tasks.cancel_scope.cancel()
