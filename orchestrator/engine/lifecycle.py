"""Walks one attempt through its stages: intent before, fact after, every stage bounded, everything released at the end.

Order of durability: an intent is on disk before the call it announces, and the whole result before `release`, because
release destroys the only other copy. A devbox whose score is not durable is left to its keep-alive.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

import anyio
import structlog

from orchestrator.core.errors import (
    AllowanceUsedUp,
    DevboxFailed,
    JournalError,
    StageTimeout,
    SweepError,
    SweepHalted,
    WorldError,
)
from orchestrator.core.events import AttemptEnded, StageEntered, StageFinished, TrialFinished
from orchestrator.core.ledger import INTERRUPTED, Attempt, Trial
from orchestrator.core.records import Failure, Flag, Outcome, ScenarioRun, TrialKey
from orchestrator.core.retry_policy import DELAYS, INTERRUPTIONS, Action, Decision, Rule, decide, rule
from orchestrator.core.stages import ANNOUNCED, Stage, move
from orchestrator.engine.agent_log import telling_line
from orchestrator.engine.context import LOG, Context, Work, attempt_folder, given
from orchestrator.engine.result import result_line
from orchestrator.engine.resume import has_result, take_up
from orchestrator.engine.retry_io import PATIENCE, persist
from orchestrator.engine.steps import STEPS, Facts, gathered, unchanged_scenario

#: Seconds that an attempt being canceled may take to release what it holds.
LAST_RITES = 8.0
ROAD = (Stage.START, Stage.BOOT, Stage.PREPARE, Stage.SOLVE, Stage.GATHER, Stage.SCORE)


async def attempt(ctx: Context, key: TrialKey) -> Decision | None:
    """Try a trial once. Returns None when it is finished, else what follows and when.

    Raises what concerns the whole sweep: UsageError, Unauthorized, JournalError, InternalError.
    """
    left = ctx.ledger.under_way(key)
    work = await _begin(ctx, key, left)
    try:
        return await _try_once(ctx, work, left)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + LAST_RITES):
            await _abandon(ctx, work)
        raise


async def _try_once(ctx: Context, work: Work, left: Attempt | None) -> Decision | None:
    try:
        first = await take_up(ctx, work, left) if left else Stage.START
    except SweepError as error:
        return await _end_without_score(ctx, work, error, rule(error, Stage.START))
    try:
        stage: Stage | None = first
        while stage is not None:
            await WALKS.get(stage, _walk)(ctx, work, stage)
            stage = _after(stage, work)
    except SweepError as error:
        return await _end_without_score(ctx, work, error, rule(error, work.stage))
    await _finish(ctx, work, Outcome.SCORED)
    return None


def _after(stage: Stage, work: Work) -> Stage | None:
    """The stage that follows; None at the end of the road."""
    if stage in {Stage.START, Stage.BOOT, Stage.SOLVE} and has_result(work.run):
        return Stage.SCORE
    return dict(pairwise(ROAD)).get(stage)


async def _begin(ctx: Context, key: TrialKey, left: Attempt | None) -> Work:
    trial = ctx.ledger.trials.get(key)
    number = left.number if left else trial.attempts + 1 if trial else 1
    summary = ctx.summary(key)
    folder = attempt_folder(ctx.folder, key, summary.name, number)
    await persist(partial(_lay_out, folder), patience=PATIENCE)
    return Work(
        key=key,
        number=number,
        sweep=ctx.sweep,
        arm=ctx.arms[key.arm],
        summary=summary,
        folder=folder,
        redactor=ctx.redactor,
    )


def _lay_out(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG).touch()


def _limit(ctx: Context, key: TrialKey, stage: Stage) -> float:
    summary = ctx.summary(key)
    return ctx.config.timeouts.limit(stage, agent=summary.agent_timeout, scorer=summary.scorer_timeout)


def longest_left(ctx: Context, now: float) -> float:
    """Seconds that the limits of those in flight allow yet, `now` by the journal's clock: for people.

    Each stage is counted once: a scorer that must be asked again takes longer.
    """
    return max((_left(ctx, key, now) for key in ctx.in_flight), default=0.0)


def _left(ctx: Context, key: TrialKey, now: float) -> float:
    trial = ctx.ledger.trials.get(key) or Trial()
    attempt = trial.attempt or Attempt(number=0, stage=Stage.START, since=now)
    at = attempt.stage or Stage.START
    stages = list(Stage)
    ahead = stages[stages.index(at) + 1 :]
    spent = now - attempt.since
    left = 0.0 if attempt.finished is at else max(0.0, _limit(ctx, key, at) - spent)
    if Stage.SOLVE in ahead and ctx.config.agents is not None:
        left += ctx.config.timeouts.solve_for(ctx.summary(key).agent_timeout)  # it waits for its turn
    return left + sum(_limit(ctx, key, stage) for stage in ahead)


async def _walk(ctx: Context, work: Work, stage: Stage) -> None:
    """Take one stage: journal the intent, do the work within its limit, journal the fact."""
    async with _turn(ctx, work, stage) as waited:
        work.stage = move(work.stage, stage)
        entered = StageEntered(trial=str(work.key), attempt=work.number, stage=stage)
        if stage in ANNOUNCED:
            await ctx.sink.append(entered)
        else:
            ctx.sink.append_nowait(entered)
        began = anyio.current_time()
        limit = _limit(ctx, work.key, stage)
        try:
            with ctx.silence.limited(limit):
                facts = await STEPS[stage](ctx, work)
        except TimeoutError:
            raise StageTimeout(f"{stage} took longer than {limit:g} s") from None
        finally:
            work.spend(stage, anyio.current_time() - began, waited)
        _note_finished(ctx, work, stage, facts)
        ctx.breaker.passed(stage, work.arm.name)


def _note_finished(ctx: Context, work: Work, stage: Stage, facts: Facts) -> None:
    ctx.sink.append_nowait(
        StageFinished(trial=str(work.key), attempt=work.number, stage=stage, **work.stages[stage.value], facts=facts)
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


async def _walk_boot(ctx: Context, work: Work, stage: Stage) -> None:
    """Wait for the devbox. It is not needed where the journal had lost sight of a run that is scored already."""
    try:
        await _walk(ctx, work, stage)
    except DevboxFailed:
        run: ScenarioRun = given(work.run, "the run")
        work.run = await ctx.endpoint.run(run.id)
        if not has_result(work.run):
            await unchanged_scenario(ctx, work)
            raise


async def _walk_solve(ctx: Context, work: Work, stage: Stage) -> None:
    """Let the agent work. Where it broke its own devbox, the run has its score already."""
    try:
        await _walk(ctx, work, stage)
    except WorldError:
        run: ScenarioRun = given(work.run, "the run")
        work.run = await ctx.endpoint.run(run.id)
        if not has_result(work.run):
            raise


async def _walk_gather(ctx: Context, work: Work, stage: Stage) -> None:
    """Bring home what there is; what is missing is noted and fails nothing."""
    try:
        await _walk(ctx, work, stage)
    except WorldError as error:
        _miss(work, error.message)
        _note_finished(ctx, work, stage, gathered(work))


def _miss(work: Work, reason: str) -> None:
    work.flag(Flag.GATHER_INCOMPLETE)
    structlog.get_logger().warning("gather.incomplete", trial=str(work.key), error=reason)


async def _walk_score(ctx: Context, work: Work, stage: Stage) -> None:
    """Score, and score again while it is the scorers that fail. Raises the last fault."""
    if Stage.GATHER not in work.stages:
        _miss(work, "the run was scored before we came to it: its devbox has the scorers' files in it, or is gone")
    while True:
        try:
            await _walk(ctx, work, stage)
        except SweepError as error:
            if _decide(ctx, work, error, rule(error)).action is not Action.SCORE_AGAIN:
                raise
            structlog.get_logger().info("score.again", trial=str(work.key), error=error.message)
        else:
            return


WALKS: Final = {Stage.BOOT: _walk_boot, Stage.SOLVE: _walk_solve, Stage.GATHER: _walk_gather, Stage.SCORE: _walk_score}


async def _end_without_score(ctx: Context, work: Work, error: SweepError, its_rule: Rule) -> Decision | None:
    """Journal why the attempt ended, release what it holds, and say what follows."""
    ctx.redactor.clean(error)
    if isinstance(error, JournalError):
        raise error
    failure = Failure(error=type(error).__name__, message=error.message, stage=str(work.stage))
    verdict = ctx.breaker.failed(
        error, work.stage, work.arm.name, now=anyio.current_time(), is_busy=any(map(ctx.ledger.has_run, ctx.in_flight))
    )
    if verdict is not None:
        error, its_rule = SweepHalted(verdict), rule(SweepHalted())
    decision = _decide(ctx, work, error, its_rule)
    if decision.action is Action.LATER:
        ctx.delays[work.key] += 1
        return decision
    if work.stage is not None:
        await ctx.sink.append(
            AttemptEnded(
                trial=str(work.key),
                attempt=work.number,
                failure=failure.as_dict(),
                counted=its_rule.is_counted,
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


def _decide(ctx: Context, work: Work, error: SweepError, its_rule: Rule) -> Decision:
    tries, allowed = _tries(ctx, work, its_rule)
    return decide(error, its_rule, tries=tries, allowed=allowed, dice=ctx.dice())


def _tries(ctx: Context, work: Work, its_rule: Rule) -> tuple[int, int | None]:
    """Which failure of its kind this is, and how many are allowed."""
    trial = ctx.ledger.trials.get(work.key) or Trial()
    match its_rule.bound:
        case "attempts":
            return trial.counted + 1, ctx.config.attempts
        case "scorings":
            return work.scorings, ctx.config.scorings
        case "delays":
            return ctx.delays[work.key] + 1, DELAYS
        case "interruptions":
            return trial.interrupted + 1, INTERRUPTIONS
        case None:
            return 1, None


async def _finish(ctx: Context, work: Work, outcome: Outcome, failure: Failure | None = None) -> None:
    """The result is durable first; then the devbox may go."""
    result = result_line(ctx, work, outcome, failure)
    work.has_score = outcome is Outcome.SCORED
    await ctx.sink.append(TrialFinished(trial=str(work.key), attempt=work.number, result=result))
    await _release(ctx, work)
    if Flag.AGENT_CRASHED in work.flags:
        await _halt_if_it_always_crashes(ctx, work)


async def _halt_if_it_always_crashes(ctx: Context, work: Work) -> None:
    """Raise SweepHalted where every trial of the arm has gone as this one, by what the ledger knows."""
    trials = (ctx.ledger.trials[key] for key in ctx.ledger.finished if key.arm == work.key.arm)
    verdict = ctx.breaker.crashed(work.key.arm, trials)
    if verdict is not None:
        said = telling_line(work.folder / LOG) or "it printed nothing"
        raise SweepHalted(
            f"{verdict}: {said}. Fix it, and start a new sweep, or run these again with --retry {Flag.AGENT_CRASHED}; "
            "raise --same-failures if that is normal for your agent"
        )


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
    if work.has_score:
        await ctx.sink.append()  # its score is on its way to the disk: if that takes too long, the devbox keeps it
    elif work.stage is not Stage.RELEASE and not ctx.ledger.is_finished(work.key):
        failure = Failure(error=INTERRUPTED, message="the sweep was stopped", stage=str(work.stage))
        ctx.sink.append_nowait(
            AttemptEnded(trial=str(work.key), attempt=work.number, failure=failure.as_dict(), counted=False)
        )
    await _release(ctx, work)
