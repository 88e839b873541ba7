"""What an earlier process left, and what becomes of it.

A finished trial whose release is missing is released before anything new starts. An attempt that was under way is taken
up by the worker that gets its trial: the endpoint is asked what became of it, and `next_stage` says where it goes on.
A result that is there always wins; an agent in a devbox that lives is waited for, never run again.
"""

from contextlib import suppress
from functools import partial
from typing import Final

import anyio
import structlog

from orchestrator.agentkit.agent import Result, Where
from orchestrator.agentkit.worker_process import end_process
from orchestrator.core.errors import Interrupted, Missing, RunLost, Unavailable, WorldError
from orchestrator.core.events import AttemptEnded, StageEntered, StageFinished
from orchestrator.core.ledger import INTERRUPTED, Attempt
from orchestrator.core.records import (
    DEVBOX_BOOTING,
    DEVBOX_DEAD,
    RUN_ALIVE,
    RUN_RESULT,
    Devbox,
    Failure,
    Flag,
    ScenarioRun,
    TrialKey,
)
from orchestrator.core.stages import Stage
from orchestrator.engine.context import Context, Work
from orchestrator.engine.steps import open_workspace, unchanged_scenario

FOLLOWS: Final = {
    Stage.BOOT: Stage.PREPARE,
    Stage.PREPARE: Stage.SOLVE,
    Stage.SOLVE: Stage.GATHER,
    Stage.GATHER: Stage.SCORE,
    Stage.SCORE: Stage.SCORE,
}
#: Runs settled at once.
_AT_ONCE = 16
#: Seconds in which the endpoint must say what became of an attempt.
_ANSWER = 120.0


def next_stage(attempt: Attempt, run: ScenarioRun, devbox: Devbox, *, where: Where) -> Stage | None:
    """Where an interrupted attempt goes on; None if nothing of it can."""
    at, is_done = attempt.stage, attempt.finished is attempt.stage
    if has_result(run) and at is not Stage.RELEASE:
        return Stage.SCORE
    if at is None or at in {Stage.START, Stage.RELEASE}:
        return Stage.BOOT if at is Stage.START and _is_usable(run, devbox) else None
    if not _is_usable(run, devbox) or (devbox.status in DEVBOX_BOOTING and at is not Stage.BOOT):
        return None
    if is_done:
        return FOLLOWS[at]
    cannot_go_on = at is Stage.PREPARE or (at is Stage.SOLVE and where == "host")
    return None if cannot_go_on else at


def has_result(run: ScenarioRun | None) -> bool:
    """Whether a run needs nothing any more but to be read."""
    return run is not None and run.state in RUN_RESULT and run.score is not None


def _is_usable(run: ScenarioRun, devbox: Devbox) -> bool:
    return devbox.status not in DEVBOX_DEAD and run.state in {"running", "scoring", "scored", "failed"}


async def take_up(ctx: Context, work: Work, left: Attempt) -> Stage:
    """Fill the papers of an attempt with what is known of it; returns the stage where it goes on.

    Raises Interrupted if nothing of it can, RunLost if somebody else ended its run, Unavailable or Throttled if the
    endpoint does not say what became of it.
    """
    work.stage, work.stages = left.stage, dict(left.stages)
    if left.run is None:
        work.is_again = True
        return Stage.START
    try:
        with anyio.fail_after(_ANSWER):
            try:
                work.run = await ctx.remote.run(left.run)
                devbox = await ctx.remote.devbox(work.run.devbox_id)
            except Missing as error:
                raise Interrupted(f"the endpoint knows nothing of the attempt any more: {error}") from None
            work.scenario = await unchanged_scenario(ctx, work)
    except TimeoutError:
        raise Unavailable(f"the endpoint did not say in {_ANSWER:g} s what became of the attempt") from None
    work.benchmark_run = work.run.benchmark_run_id
    if work.run.state == "canceled":
        raise RunLost(f"run {work.run.id} was canceled by somebody else")
    if left.pid is not None:
        await end_process(left.pid, left.birth)
    stage = next_stage(left, work.run, devbox, where=work.arm.agent.where)
    if stage is None:
        raise Interrupted(f"the process ended during {left.stage}, and the devbox is {devbox.status}")
    if stage is not Stage.BOOT:
        _recall(ctx, work, left, devbox)
    structlog.get_logger().info("attempt.taken_up", trial=str(work.key), attempt=left.number, stage=stage)
    return stage


def _recall(ctx: Context, work: Work, left: Attempt, devbox: Devbox) -> None:
    """What the stages before would have left in the papers."""
    open_workspace(ctx, work, devbox, left)
    work.scorings = left.entries if left.stage is Stage.SCORE else 0
    if "exit_status" in left.facts:
        work.result = Result(
            exit_status=left.facts["exit_status"],
            exit_reason=left.facts.get("exit_reason", ""),
            usage=left.facts.get("usage", {}),
        )
        work.flags = [Flag(flag) for flag in left.facts.get("flags", ())]
    work.files |= left.facts.get("files", {})
    work.network = dict(left.facts.get("network", work.network))


async def reconcile(ctx: Context) -> None:
    """Compare the ledger with the endpoint: release what is over, end what no trial will take up, and end strays.

    Done before the first trial and after the last one. An endpoint that does not list what it has is asked for each
    attempt by itself, and keeps strays until their time is over.
    """
    runs = [state.run for state in ctx.ledger.benchmark_runs.values() if state.run is not None]
    if not runs:
        return
    try:
        await ctx.remote.read(runs)
    except (WorldError, TimeoutError) as error:
        structlog.get_logger().warning("endpoint.not_listed", error=str(error))
    else:
        await ctx.remote.reap(ctx.sink, ctx.ledger.unreleased())
    limiter = anyio.CapacityLimiter(_AT_ONCE)
    async with anyio.create_task_group() as tasks:
        for key, attempt in ctx.ledger.unreleased():
            if ctx.ledger.under_way(key) is not attempt or not ctx.has(key):
                tasks.start_soon(partial(_settle, ctx, key, attempt, limiter))


async def _settle(ctx: Context, key: TrialKey, attempt: Attempt, limiter: anyio.CapacityLimiter) -> None:
    """Release an attempt that is over, or whose trial nobody asks for any more."""
    trial, number = str(key), attempt.number
    if ctx.ledger.under_way(key) is attempt:
        failure = Failure(error=INTERRUPTED, message="the trial is no longer asked for", stage=str(attempt.stage))
        await ctx.sink.append(AttemptEnded(trial=trial, attempt=number, failure=failure.as_dict(), counted=False))
    began = anyio.current_time()
    async with limiter:
        await ctx.sink.append(StageEntered(trial=trial, attempt=number, stage=Stage.RELEASE))
        try:
            with anyio.fail_after(ctx.config.timeouts.release):
                await _give_back(ctx, attempt)
        except (WorldError, TimeoutError) as error:
            structlog.get_logger().warning("release.failed", trial=trial, error=str(error))
            return
    seconds = round(anyio.current_time() - began, 3)
    ctx.sink.append_nowait(StageFinished(trial=trial, attempt=number, stage=Stage.RELEASE, seconds=seconds))


async def _give_back(ctx: Context, attempt: Attempt) -> None:
    """Complete or cancel the run of an attempt, if it is not over already."""
    if attempt.run is None:
        return  # if it was started all the same, it is a stray
    with suppress(Missing):
        run = await ctx.remote.run(attempt.run)
        if run.state in RUN_ALIVE | {"failed", "timeout"}:
            await (ctx.endpoint.complete if attempt.is_scored else ctx.endpoint.cancel)(run.id)
