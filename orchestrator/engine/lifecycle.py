"""Walks one attempt through its stages: intent before, fact after, every stage bounded, everything released at the end.

Order of durability: an intent is on disk before the call it announces, and the whole result before `release`, because
release destroys the only other copy. A devbox whose score is not durable is left to its keep-alive.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import structlog

from orchestrator.engine.result import result_line
from orchestrator.engine.resume import take_up
from orchestrator.engine.steps import STEPS
from orchestrator.engine.work import Context, Work, attempt_folder
from orchestrator.errors import AllowanceUsedUp, Interrupted, JournalError, StageTimeout, SweepError, WorldError
from orchestrator.events import AttemptEnded, StageEntered, StageFinished, TrialFinished
from orchestrator.ledger import INTERRUPTED, Attempt
from orchestrator.model import Failure, Outcome, TrialKey
from orchestrator.policy import Action, Decision, decide
from orchestrator.stages import Stage, move

#: Seconds that an attempt being canceled may take to release what it holds.
LAST_RITES = 8.0
#: How often a trial may be interrupted before it is given up.
INTERRUPTIONS = 5
ROAD = (Stage.START, Stage.BOOT, Stage.PREPARE, Stage.SOLVE, Stage.GATHER, Stage.SCORE)


async def attempt(ctx: Context, key: TrialKey) -> Decision | None:
    """Try a trial once. Returns None when it is finished, else what follows and when.

    Raises what concerns the whole sweep: UsageError, Unauthorized, JournalError, InternalError.
    """
    left = ctx.ledger.under_way(key)
    work = _begin(ctx, key, left)
    try:
        return await _try_once(ctx, work, left)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + LAST_RITES):
            await _abandon(ctx, work)
        raise


async def _try_once(ctx: Context, work: Work, left: Attempt | None) -> Decision | None:
    try:
        first = await take_up(ctx, work, left) if left else Stage.START
        for stage in ROAD[ROAD.index(first) :]:
            await WALKS.get(stage, _walk)(ctx, work, stage)
    except SweepError as error:
        return await _end_without_score(ctx, work, error)
    await _finish(ctx, work, Outcome.SCORED)
    return None


def _begin(ctx: Context, key: TrialKey, left: Attempt | None) -> Work:
    trial = ctx.ledger.trials.get(key)
    number = left.number if left else trial.attempts + 1 if trial else 1
    summary = ctx.scenarios[key.scenario]
    folder = attempt_folder(ctx.folder, key, summary.name, number)
    folder.mkdir(parents=True, exist_ok=True)
    return Work(key=key, number=number, sweep=ctx.sweep, arm=ctx.arms[key.arm], summary=summary, folder=folder)


def _limit(ctx: Context, work: Work, stage: Stage) -> float:
    """Seconds that a stage may take. The agent's own limit is enforced beside it, ours is the backstop."""
    timeouts = ctx.config.timeouts
    match stage:
        case Stage.SOLVE:
            return timeouts.solve_for(work.summary.agent_timeout) + 2 * timeouts.start
        case Stage.SCORE:
            return timeouts.score_for(work.summary.scorer_timeout) + timeouts.start
        case _:
            return float(getattr(timeouts, stage.value))


async def _walk(ctx: Context, work: Work, stage: Stage) -> None:
    """Take one stage: journal the intent, do the work within its limit, journal the fact."""
    async with _turn(ctx, work, stage) as waited:
        work.stage = move(work.stage, stage)
        await ctx.sink.append(StageEntered(trial=str(work.key), attempt=work.number, stage=stage))
        began = anyio.current_time()
        limit = _limit(ctx, work, stage)
        try:
            with anyio.fail_after(limit):
                facts = await STEPS[stage](ctx, work)
        except TimeoutError:
            raise StageTimeout(f"{stage} took longer than {limit:g} s") from None
        finally:
            work.spend(stage, anyio.current_time() - began, waited)
        ctx.sink.append_nowait(
            StageFinished(
                trial=str(work.key),
                attempt=work.number,
                stage=stage,
                seconds=work.stages[stage.value]["seconds"],
                waited=round(waited, 3),
                facts=facts,
            )
        )


@asynccontextmanager
async def _turn(ctx: Context, work: Work, stage: Stage) -> AsyncIterator[float]:
    """Hold the place that a stage needs; gives the seconds waited, which are no part of the stage."""
    if stage is not Stage.SOLVE:
        yield 0.0
        return
    allowance = ctx.config.timeouts.solve_for(work.summary.agent_timeout)
    asked_at = anyio.current_time()
    with anyio.CancelScope(deadline=asked_at + allowance) as waiting:
        async with ctx.limits.agent() as waited:
            waiting.deadline = float("inf")
            yield waited
    if waiting.cancelled_caught:
        raise AllowanceUsedUp(f"no agent's turn came in {allowance:g} s")


async def _walk_gather(ctx: Context, work: Work, stage: Stage) -> None:
    """Bring home what there is; what is missing is noted and fails nothing."""
    try:
        await _walk(ctx, work, stage)
    except WorldError as error:
        work.flags.append("gather_incomplete")
        structlog.get_logger().warning("gather.incomplete", trial=str(work.key), error=error.message)


async def _walk_score(ctx: Context, work: Work, stage: Stage) -> None:
    """Score, and score again while it is the scorers that fail. Raises the last fault."""
    while True:
        try:
            await _walk(ctx, work, stage)
        except SweepError as error:
            decision = decide(error, tries=work.scorings, allowed=ctx.config.scorings, dice=ctx.dice())
            if decision.action is not Action.SCORE_AGAIN:
                raise
            structlog.get_logger().info("score.again", trial=str(work.key), error=error.message)
            await anyio.sleep(decision.delay)
        else:
            return


WALKS: Final = {Stage.GATHER: _walk_gather, Stage.SCORE: _walk_score}


async def _end_without_score(ctx: Context, work: Work, error: SweepError) -> Decision | None:
    """Journal why the attempt ended, release what it holds, and say what follows."""
    if isinstance(error, JournalError):
        raise error
    failure = Failure(error=type(error).__name__, message=error.message, stage=str(work.stage))
    counted = not isinstance(error, AllowanceUsedUp | Interrupted)
    decision = _decide(ctx, work, error, counted=counted)
    counted &= decision.action is not Action.STOP  # nobody's trial's fault
    if work.stage is not None:
        await ctx.sink.append(
            AttemptEnded(
                trial=str(work.key),
                attempt=work.number,
                failure=failure.as_dict(),
                counted=counted,
                retry_in=round(decision.delay, 3) if decision.action is Action.NEW_ATTEMPT else None,
            )
        )
    if decision.action is Action.STOP:
        await _release(ctx, work)
        raise error
    if decision.action is Action.NEW_ATTEMPT:
        await _release(ctx, work)
        return decision
    await _finish(ctx, work, Outcome.FAILED, failure)
    return None


def _decide(ctx: Context, work: Work, error: SweepError, *, counted: bool) -> Decision:
    trial = ctx.ledger.trials.get(work.key)
    if isinstance(error, Interrupted):
        tries, allowed = (trial.interrupted if trial else 0) + 1, INTERRUPTIONS
    else:
        tries, allowed = (trial.counted if trial else 0) + counted, ctx.config.attempts
    return decide(error, tries=tries, allowed=allowed, dice=ctx.dice())


async def _finish(ctx: Context, work: Work, outcome: Outcome, failure: Failure | None = None) -> None:
    """The result is durable first; then the devbox may go."""
    result = result_line(ctx, work, outcome, failure)
    with anyio.CancelScope(shield=True):  # a result that is there is never interrupted away
        await ctx.sink.append(TrialFinished(trial=str(work.key), attempt=work.number, result=result))
    await _release(ctx, work)


async def _release(ctx: Context, work: Work) -> None:
    """Give the devbox back. A release that fails is noted: the keep-alive or the next resume ends what is left."""
    try:
        await _walk(ctx, work, Stage.RELEASE)
    except WorldError as error:
        structlog.get_logger().warning("release.failed", trial=str(work.key), error=error.message)


async def _abandon(ctx: Context, work: Work) -> None:
    """We are stopping: the attempt ends, uncounted, and its devbox goes back."""
    if work.stage is None:
        return
    if work.stage is not Stage.RELEASE and not ctx.ledger.is_finished(work.key):
        failure = Failure(error=INTERRUPTED, message="the sweep was stopped", stage=str(work.stage))
        ctx.sink.append_nowait(
            AttemptEnded(trial=str(work.key), attempt=work.number, failure=failure.as_dict(), counted=False)
        )
    await _release(ctx, work)
