"""Takes one attempt through its stages: intent before, fact after, every stage bounded, everything released at the end.

Order of durability: an intent is on disk before the call it announces, and the whole result before `release`, because
release destroys the only other copy. A devbox whose score is not durable is left to its keep-alive.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import anyio
import structlog

from orchestrator.core import errors, events, retry_policy
from orchestrator.core.ledger import Attempt, Trial
from orchestrator.core.records import Failure, Flag, Outcome, TrialKey
from orchestrator.core.stages import ANNOUNCED, Stage, move
from orchestrator.engine.agent_log import telling_line
from orchestrator.engine.context import AttemptState, Context, compose_result, given
from orchestrator.engine.rescoring import need_same_work, rescored, unscored, work_of
from orchestrator.engine.resume import take_up
from orchestrator.engine.stage_table import STAGES, decision_on, flag_incomplete, note_finished, open_workspace
from orchestrator.rundir.files import AGENT_LOG, attempt_folder, persist

#: Seconds that an attempt being canceled may take to release what it holds.
CANCEL_GRACE_S: Final = 8.0
SCORED_BEFORE: Final = "the run was scored before: its devbox has the scorers' files in it, or is gone"


async def attempt(ctx: Context, key: TrialKey) -> retry_policy.Decision | None:
    """Try a trial once. Returns None when it is finished, else the action that follows and its delay.

    Raises the failures that concern the whole sweep: UsageError, Unauthorized, JournalError, InternalError.
    """
    left = ctx.ledger.under_way(key)
    trial = ctx.ledger.trials.get(key)
    number = left.number if left else trial.attempts + 1 if trial else 1
    summary, arm, kept = ctx.summary(key), ctx.arms[key.arm], trial.kept if trial else None
    state = AttemptState(
        key=key,
        number=number,
        sweep=ctx.sweep,
        arm=arm if kept is None else replace(arm, agent=work_of(kept, arm.agent, ctx.folder)),
        kept=kept,
        whole=summary,
        base=attempt_folder(ctx.folder, key, summary.name, number),
        steps=left.steps.copy() if left else [],
        redactor=ctx.redactor,
    )
    await state.lay_out()
    try:
        return await _try_once(ctx, state, left)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + CANCEL_GRACE_S):
            await _abandon(ctx, state)
        raise


async def _try_once(ctx: Context, state: AttemptState, left: Attempt | None) -> retry_policy.Decision | None:
    """Take the stages one after the other, from where an earlier process `left` off."""
    stage: Stage | None = Stage.START
    if left is not None:
        try:
            stage = await take_up(ctx, state, left)
        except errors.SweepError as error:
            its_rule = retry_policy.rule(error, Stage.START)
            if its_rule.action is retry_policy.Action.LATER:
                return _take_up_later(ctx, state, error, its_rule)
            return await _end_without_score(ctx, state, error, its_rule)
        if left.run is not None:  # the endpoint gave its state
            ctx.breaker.passed(Stage.START, state.arm.name)
    try:
        while stage is not None:
            if stage is Stage.SCORE and Stage.GATHER not in state.stages:
                flag_incomplete(state, SCORED_BEFORE)
            elif stage is Stage.SCORE and state.kept is not None:
                await persist(partial(need_same_work, state, ctx.folder))
            await _walk(ctx, state, stage)
            has_result = state.run is not None and state.run.has_result
            if stage is Stage.SCORE and not has_result:
                stage = await _begin_next_step(ctx, state)
            else:
                stage = Stage.SCORE if has_result and stage is not Stage.SCORE else STAGES[stage].next
    except errors.SweepError as error:
        return await _end_without_score(ctx, state, error, retry_policy.rule(error, state.stage))
    await _finish(ctx, state, Outcome.SCORED)
    return None


async def _begin_next_step(ctx: Context, state: AttemptState) -> Stage:
    """Journal the result of a step, and turn to the one that follows; return its first stage."""
    devbox = given(state.workspace, "the workspace").devbox
    await ctx.sink.append(events.StepEnded(trial=str(state.key), attempt=state.number, result=state.next_step()))
    await state.lay_out()
    open_workspace(ctx, state, devbox)
    return Stage.PREPARE


def _take_up_later(
    ctx: Context, state: AttemptState, error: errors.SweepError, its_rule: retry_policy.RetryRule
) -> retry_policy.Decision:
    """Decide when to take up an attempt again that may still be under way: nothing of it is ended or given up.

    Raises SweepHalted where the endpoint has not given its state for too long.
    """
    ctx.redactor.clean(error)
    verdict = _verdict(ctx, state, error, Stage.START)
    if verdict is not None:
        raise errors.SweepHalted(verdict)
    structlog.get_logger().warning("resume.deferred", trial=str(state.key), error=error.message)
    ctx.delays[state.key] += 1
    return retry_policy.decide(error, its_rule, tries=ctx.delays[state.key], allowed=None, dice=ctx.dice())


def _verdict(ctx: Context, state: AttemptState, error: errors.SweepError, stage: Stage | None) -> str | None:
    """Count a failure; return the reason to stop the whole sweep, or None."""
    is_busy = any(map(ctx.ledger.has_run, ctx.in_flight))
    return ctx.breaker.failed(error, stage, state.arm.name, now=anyio.current_time(), is_busy=is_busy)


async def _walk(ctx: Context, state: AttemptState, stage: Stage) -> None:
    """Take a stage, again while its `on_error` returns true. Raises the errors that `on_error` raises."""
    entry = STAGES[stage]
    while True:
        try:
            return await _take(ctx, state, stage)
        except entry.catches as error:
            if not await entry.on_error(ctx, state, error):
                return None


async def _take(ctx: Context, state: AttemptState, stage: Stage) -> None:
    """Take a stage once: journal the intent, do the work within its limit, journal the fact."""
    async with _turn(ctx, state, stage) as waited:
        state.stage = move(state.stage, stage)
        entered = events.StageEntered(trial=str(state.key), attempt=state.number, stage=stage)
        if stage in ANNOUNCED:
            await ctx.sink.append(entered)
        else:
            ctx.sink.append_nowait(entered)
        began = anyio.current_time()
        limit = STAGES[stage].limit(ctx.config.timeouts, state.summary)
        try:
            with ctx.silence.limited(limit) as state.limit:
                facts = await STAGES[stage].run(ctx, state)
        except TimeoutError:
            raise errors.StageTimeout(f"{stage} took longer than {limit:g} s") from None
        finally:
            state.spend(stage, anyio.current_time() - began, waited)
        note_finished(ctx, state, stage, facts)
        ctx.breaker.passed(stage, state.arm.name)


@asynccontextmanager
async def _turn(ctx: Context, state: AttemptState, stage: Stage) -> AsyncIterator[float]:
    """Hold the place that a stage needs. Yields the seconds waited, which are no part of the stage."""
    if stage is not Stage.SOLVE:
        yield 0.0
        return
    allowance = ctx.config.timeouts.solve_for(state.summary.agent_timeout)
    asked_at = anyio.current_time()
    with anyio.CancelScope(deadline=asked_at + allowance) as waiting:
        async with ctx.limits.agent() as waited:
            waiting.deadline = float("inf")
            yield waited
    if waiting.cancelled_caught:
        raise errors.AllowanceUsedUp(f"no agent's turn came in {allowance:g} s")


def longest_left(ctx: Context, now: float) -> float:
    """Estimate the seconds until the last trial in flight reaches its limits; `now` is by the journal's clock.

    Each stage is counted once: a scorer that must be asked again takes longer.
    """
    longest = 0.0
    for key in ctx.in_flight:
        summary = ctx.summary(key)
        trial = ctx.ledger.trials.get(key) or Trial()
        attempt = trial.attempt or Attempt(number=0, stage=Stage.START, since=now)
        at = attempt.stage or Stage.START
        stages = list(Stage)
        ahead = stages[stages.index(at) + 1 :]
        left = sum(STAGES[stage].limit(ctx.config.timeouts, summary) for stage in ahead)
        if attempt.finished is not at:
            left += max(0.0, STAGES[at].limit(ctx.config.timeouts, summary) - (now - attempt.since))
        for step in range(len(attempt.steps) + 1, len(summary.steps)):
            whole = list(Stage)[list(Stage).index(Stage.PREPARE) : list(Stage).index(Stage.RELEASE)]
            left += sum(STAGES[stage].limit(ctx.config.timeouts, summary.in_step(step)) for stage in whole)
        if Stage.SOLVE in ahead and ctx.limits.agents < ctx.limits.devboxes:
            left += ctx.config.timeouts.solve_for(summary.agent_timeout)  # it waits for its turn
        longest = max(longest, left)
    return longest


async def _end_without_score(
    ctx: Context, state: AttemptState, error: errors.SweepError, its_rule: retry_policy.RetryRule
) -> retry_policy.Decision | None:
    """Journal why the attempt ended and release its devbox. Returns as `attempt`."""
    ctx.redactor.clean(error)
    if isinstance(error, errors.JournalError):
        raise error
    failure = Failure(error=type(error).__name__, message=error.message, stage=str(state.stage))
    verdict = _verdict(ctx, state, error, state.stage)
    if verdict is not None:
        error, its_rule = errors.SweepHalted(verdict), retry_policy.rule(errors.SweepHalted())
    decision = decision_on(ctx, state, error, its_rule)
    if decision.action is retry_policy.Action.LATER:
        structlog.get_logger().warning("start.deferred", trial=str(state.key), error=error.message)
        ctx.delays[state.key] += 1
        return decision
    if state.stage is not None:
        await ctx.sink.append(
            events.AttemptEnded(
                trial=str(state.key),
                attempt=state.number,
                failure=failure.as_dict(),
                counted=its_rule.is_counted,
            )
        )
    if decision.action is retry_policy.Action.STOP:
        await _walk(ctx, state, Stage.RELEASE)
        raise error
    if decision.action is retry_policy.Action.NEW_ATTEMPT:
        await _walk(ctx, state, Stage.RELEASE)
        return decision
    await _finish(ctx, state, Outcome.FAILED, failure)
    return None


async def _finish(ctx: Context, state: AttemptState, outcome: Outcome, failure: Failure | None = None) -> None:
    """Make the result durable, then release the devbox. Raises SweepHalted where every agent of the arm crashed."""
    result = compose_result(ctx, state, outcome, failure)
    if state.kept is not None:
        result = rescored(state.kept, result)
    state.has_score = outcome is Outcome.SCORED
    await ctx.sink.append(events.TrialFinished(trial=str(state.key), attempt=state.number, result=result))
    await _walk(ctx, state, Stage.RELEASE)
    if Flag.AGENT_CRASHED not in state.flags:
        return
    trials = (ctx.ledger.trials[key] for key in ctx.ledger.finished if key.arm == state.key.arm)
    verdict = ctx.breaker.crashed(state.key.arm, trials)
    if verdict is not None:
        said = telling_line(state.folder / AGENT_LOG) or "it printed nothing"
        raise errors.SweepHalted(
            f"{verdict}: {said}. Fix it, and start a new sweep, or run these again with --retry {Flag.AGENT_CRASHED}; "
            "raise --same-failures if that is normal for your agent"
        )


async def finish_unsupported(ctx: Context, owed: Iterable[TrialKey]) -> None:
    """Finish the owed trials whose scenarios cannot run, without an attempt; attempts in flight are left alone."""
    reasons = {key: ctx.summary(key).unsupported for key in owed if ctx.ledger.under_way(key) is None}
    await give_up(ctx, {key: errors.Unsupported(reason) for key, reason in reasons.items() if reason})


async def finish_canceled(ctx: Context) -> None:
    """Finish the trials that were canceled before this process began, without another attempt."""
    owed = {key: order for key, order in ctx.ledger.canceled.items() if ctx.has(key)}
    await give_up(ctx, {key: errors.Canceled(f"canceled by {order.giver}") for key, order in owed.items()})


async def end_requeued(ctx: Context) -> None:
    """End the attempts that were to end before this process began, so that others follow: uncounted."""
    ended = []
    for key, order in ctx.ledger.requeued.items():
        if ctx.has(key) and (attempt := ctx.ledger.under_way(key)) is not None:
            why = errors.Requeued(f"requeued by {order.giver}")
            failure = Failure(error=type(why).__name__, message=why.message, stage=str(attempt.stage))
            ended.append(
                events.AttemptEnded(trial=str(key), attempt=attempt.number, failure=failure.as_dict(), counted=False)
            )
    if ended:
        await ctx.sink.append(*ended)


async def give_up(ctx: Context, failures: Mapping[TrialKey, errors.SweepError]) -> None:
    """Finish trials that no worker tries, each for its reason, without another attempt.

    No worker does it: there is no devbox to wait for, and a row of such failures says nothing about other trials.
    """
    ended: list[events.TrialFinished] = []
    for key, error in failures.items():
        summary = ctx.summary(key)
        last = ctx.ledger.trials.get(key, Trial()).attempts
        folder = attempt_folder(ctx.folder, key, summary.name, last)
        state = AttemptState(key=key, number=last, sweep=ctx.sweep, arm=ctx.arms[key.arm], whole=summary, base=folder)
        failure = Failure(error=type(error).__name__, message=error.message, stage=Stage.START.value)
        kept = ctx.ledger.trials[key].kept if key in ctx.ledger.trials else None
        result = compose_result(ctx, state, Outcome.FAILED, failure) if kept is None else unscored(kept)
        ended.append(events.TrialFinished(trial=str(key), attempt=last, result=result))
    if ended:
        await ctx.sink.append(*ended)


async def _abandon(ctx: Context, state: AttemptState) -> None:
    """End an attempt because the sweep stops, or a person says so: it is not counted, and its devbox is released.

    One that an endpoint fell silent under stays as it is: its agent may still work, and a resume takes it up.
    """
    if state.stage is None:
        return
    if state.has_score:
        await ctx.sink.append()  # its score is on its way to the disk: if that takes too long, the devbox keeps it
    elif state.stage is not Stage.RELEASE and not ctx.ledger.is_finished(state.key):
        flight = ctx.in_flight.get(state.key)
        why = (flight and flight.ended_by) or errors.Interrupted("the sweep was stopped")
        if ctx.silence.has_given_up:
            return
        failure = Failure(error=type(why).__name__, message=why.message, stage=str(state.stage))
        ctx.sink.append_nowait(
            events.AttemptEnded(trial=str(state.key), attempt=state.number, failure=failure.as_dict(), counted=False)
        )
    await _walk(ctx, state, Stage.RELEASE)
