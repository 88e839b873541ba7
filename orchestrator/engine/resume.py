"""What an earlier process left on the endpoint, and what becomes of it before anything new starts.

A finished trial whose release is missing is released. An attempt that was under way is ended, uncounted, its run
canceled; the trial is attempted again.
"""

from functools import partial

import anyio
import structlog

from orchestrator.engine.work import Context
from orchestrator.errors import WorldError
from orchestrator.events import AttemptEnded, StageEntered, StageFinished
from orchestrator.ledger import Attempt
from orchestrator.model import Failure, TrialKey
from orchestrator.stages import Stage

#: Runs settled at once.
_AT_ONCE = 16


async def settle(ctx: Context) -> int:
    """Settle every attempt that an earlier process left; returns how many there were."""
    left = ctx.ledger.unreleased()
    limiter = anyio.CapacityLimiter(_AT_ONCE)
    async with anyio.create_task_group() as tasks:
        for key, attempt in left:
            tasks.start_soon(partial(_settle_one, ctx, key, attempt, limiter))
    return len(left)


async def _settle_one(ctx: Context, key: TrialKey, attempt: Attempt, limiter: anyio.CapacityLimiter) -> None:
    trial, number = str(key), attempt.number
    is_finished = ctx.ledger.is_finished(key)
    if not is_finished and ctx.ledger.trials[key].last_ended < number:
        failure = Failure(error="Interrupted", message="the process ended", stage=str(attempt.stage))
        await ctx.sink.append(AttemptEnded(trial=trial, attempt=number, failure=failure.as_dict(), counted=False))
    began = anyio.current_time()
    async with limiter:
        await ctx.sink.append(StageEntered(trial=trial, attempt=number, stage=Stage.RELEASE))
        try:
            if attempt.run is not None:
                end = ctx.endpoint.complete if is_finished and attempt.is_scored else ctx.endpoint.cancel
                with anyio.fail_after(ctx.config.timeouts.release):
                    await end(attempt.run)
        except (WorldError, TimeoutError) as error:
            structlog.get_logger().warning("release.failed", trial=trial, error=str(error))
    seconds = round(anyio.current_time() - began, 3)
    ctx.sink.append_nowait(StageFinished(trial=trial, attempt=number, stage=Stage.RELEASE, seconds=seconds))
