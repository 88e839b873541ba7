"""Resumes the work that an earlier process of the sweep left.

A finished trial whose release is missing is released before anything new starts. An attempt that was under way is taken
up by the worker that gets its trial: the endpoint is asked for its state, and `next_stage` says where it resumes. A
result on the endpoint always counts; an agent in a living devbox is waited for, never run again.
"""

from functools import partial

import anyio
import structlog

from orchestrator.agentkit.agent import Result, Where
from orchestrator.agentkit.worker_process import end_process
from orchestrator.core import errors, events
from orchestrator.core.ledger import INTERRUPTED, Attempt
from orchestrator.core.protocol import DEVBOX_BOOTING, DEVBOX_DEAD, RUN_ALIVE, RunState
from orchestrator.core.records import Devbox, Failure, Flag, ScenarioRun, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.engine.context import AttemptState, Context
from orchestrator.engine.stage_table import STAGES, open_workspace, unchanged_scenario

#: Attempts released at the same time.
_CONCURRENT = 16
#: Seconds in which the endpoint must give the state of an attempt.
_ANSWER_S = 120.0


def next_stage(attempt: Attempt, run: ScenarioRun, devbox: Devbox, *, where: Where) -> Stage | None:
    """Return the stage where an interrupted attempt resumes; None if it cannot."""
    at = attempt.stage
    if at is Stage.RELEASE:
        return None
    if run.has_result or run.in_step(len(attempt.steps)) is not run:
        return Stage.SCORE
    if at is None or devbox.status in DEVBOX_DEAD or run.state not in RUN_ALIVE | {RunState.FAILED}:
        return None
    if devbox.status in DEVBOX_BOOTING and at not in {Stage.START, Stage.BOOT}:
        return None
    if attempt.steps and (at is Stage.PREPARE or attempt.is_between_steps):
        return Stage.SOLVE if attempt.finished is at else Stage.PREPARE
    entry = STAGES[at]
    return (entry.next or at) if attempt.finished is at else entry.on_resume(where)


async def take_up(ctx: Context, state: AttemptState, left: Attempt) -> Stage:
    """Restore the state of an attempt that an earlier process left; return the stage where it resumes.

    Raises Interrupted if it cannot resume, RunLost if somebody else ended its run, Unavailable or Throttled if the
    endpoint does not give its state.
    """
    state.stage, state.stages = left.stage, dict(left.stages)
    if left.run is None:
        state.is_again = True
        return Stage.START
    try:
        with anyio.fail_after(_ANSWER_S):
            try:
                state.run = await ctx.remote.run(left.run)
                devbox = await ctx.remote.devbox(state.run.devbox_id)
            except errors.Missing as error:
                raise errors.Interrupted(f"the endpoint knows nothing of the attempt any more: {error}") from None
            state.scenario = await unchanged_scenario(ctx, state)
    except TimeoutError:
        raise errors.Unavailable(f"the endpoint did not say in {_ANSWER_S:g} s what became of the attempt") from None
    state.benchmark_run = state.run.benchmark_run_id
    if state.run.state == RunState.CANCELED:
        raise errors.RunLost(f"run {state.run.id} was canceled by somebody else")
    if left.pid is not None:
        await end_process(left.pid, left.birth)
    stage = next_stage(left, state.run, devbox, where=state.arm.agent.where)
    if stage is None:
        raise errors.Interrupted(f"the process ended during {left.stage}, and the devbox is {devbox.status}")
    if stage is not Stage.BOOT:
        open_workspace(ctx, state, devbox, left)
        state.scorings = left.entries if left.stage is Stage.SCORE else 0
        state.files |= left.facts.get("files", {})
        state.network = dict(left.facts.get("network", state.network))
        if "exit_status" in left.facts:
            state.flags = [Flag(flag) for flag in left.facts.get("flags", ())]
            state.result = Result(
                exit_status=left.facts["exit_status"],
                exit_reason=left.facts.get("exit_reason", ""),
                usage=left.facts.get("usage", {}),
            )
    structlog.get_logger().info("attempt.taken_up", trial=str(state.key), attempt=left.number, stage=stage)
    return stage


async def reconcile(ctx: Context) -> None:
    """Release attempts that are over or that no trial will take up, and end strays, before and after all trials.

    An endpoint that lists no runs is asked for each attempt by itself, and keeps strays until their keep-alive ends.
    """
    runs = [state.run for state in ctx.ledger.benchmark_runs.values() if state.run is not None]
    if not runs:
        return
    unreleased = ctx.ledger.unreleased()
    to_resume = [each for each in unreleased if ctx.ledger.under_way(each[0]) is each[1] and ctx.has(each[0])]
    try:
        await ctx.remote.read(runs)
    except (errors.WorldError, TimeoutError) as error:
        structlog.get_logger().warning("endpoint.not_listed", error=str(error))
    else:
        await ctx.remote.reap(ctx.sink, unreleased, to_resume)
    limiter = anyio.CapacityLimiter(_CONCURRENT)
    async with anyio.create_task_group() as tasks:
        for key, attempt in unreleased:
            if ctx.ledger.under_way(key) is not attempt or not ctx.has(key):
                tasks.start_soon(partial(_settle, ctx, key, attempt, limiter))


async def _settle(ctx: Context, key: TrialKey, attempt: Attempt, limiter: anyio.CapacityLimiter) -> None:
    """Release an attempt that is over, or whose trial is no longer part of the sweep."""
    trial, number = str(key), attempt.number
    if ctx.ledger.under_way(key) is attempt:
        failure = Failure(error=INTERRUPTED, message="the trial is no longer asked for", stage=str(attempt.stage))
        await ctx.sink.append(
            events.AttemptEnded(trial=trial, attempt=number, failure=failure.as_dict(), counted=False)
        )
    began = anyio.current_time()
    async with limiter:
        await ctx.sink.append(events.StageEntered(trial=trial, attempt=number, stage=Stage.RELEASE))
        try:
            with anyio.fail_after(ctx.config.timeouts.release):
                # A run that was started, but whose id was not journaled, is a stray.
                run = await ctx.remote.run(attempt.run) if attempt.run else None
                if run is not None and run.state in RUN_ALIVE | {RunState.FAILED, RunState.TIMEOUT}:
                    await (ctx.endpoint.complete if attempt.is_scored else ctx.endpoint.cancel)(run.id)
        except errors.Missing:
            pass
        except (errors.WorldError, TimeoutError) as error:
            structlog.get_logger().warning("release.failed", trial=trial, error=str(error))
            return
    seconds = round(anyio.current_time() - began, 3)
    ctx.sink.append_nowait(events.StageFinished(trial=trial, attempt=number, stage=Stage.RELEASE, seconds=seconds))
