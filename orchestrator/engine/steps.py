"""One function per stage: does its work on the endpoint, fills in the papers, returns facts worth a journal line.

Each runs inside its stage's deadline and raises the errors of `errors.py`; none journals intents, retries or releases.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import anyio
import structlog

from orchestrator.agentkit.agent import Agent, Result, Task
from orchestrator.common.locks import birth
from orchestrator.core.config import SweepConfig
from orchestrator.core.errors import (
    AgentCrashed,
    AgentTimedOut,
    Conflicted,
    DevboxLost,
    Interrupted,
    Missing,
    RunLost,
    ScoringFault,
    SweepHalted,
    Unavailable,
    WorldError,
)
from orchestrator.core.events import AgentStarted, ExecutionStarted, OutputKept, RunStarted
from orchestrator.core.ledger import Attempt
from orchestrator.core.records import (
    DEVBOX_DEAD,
    RUN_ALIVE,
    RUN_RESULT,
    Devbox,
    Flag,
    Judgement,
    Needs,
    Scenario,
    ScenarioRun,
    Settlement,
    path_part,
)
from orchestrator.core.stages import Stage
from orchestrator.engine.agent_log import AgentLog
from orchestrator.engine.artifacts.collect import bring_home, bring_verifier_home, take_snapshot
from orchestrator.engine.context import LOG, Context, Work, given
from orchestrator.engine.workspace import DevboxWorkspace

#: Seconds in which what the tests wrote beside their score must come home.
VERIFIER_PATIENCE: Final = 60.0

Facts = Mapping[str, Any]
Step = Callable[[Context, Work], Awaitable[Facts]]


async def start(ctx: Context, work: Work) -> Facts:
    """Ask for the scenario run; its id and its devbox's are durable before anything is done in that devbox."""
    work.scenario = await unchanged_scenario(ctx, work)
    if ctx.benchmark_runs is not None:
        work.benchmark_run = await ctx.benchmark_runs.of(work.key.arm, work.key.number)
    work.run = (await _find_run(ctx, work) if work.is_again else None) or await _start_run(ctx, work)
    ctx.sink.append_nowait(
        RunStarted(trial=str(work.key), attempt=work.number, run=work.run.id, devbox=work.run.devbox_id)
    )
    if work.run.state not in RUN_ALIVE | RUN_RESULT:
        raise Interrupted(f"run {work.run.id}, which this attempt had started before, is {work.run.state}")
    return {}


async def unchanged_scenario(ctx: Context, work: Work) -> Scenario:
    """The scenario as it is. Raises SweepHalted if it is not what the sweep began with: results would not compare."""
    scenario = await ctx.endpoint.scenario(work.key.scenario)
    if scenario.digest and work.summary.digest and scenario.digest != work.summary.digest:
        raise SweepHalted(
            f"scenario {scenario.name} was changed while the sweep ran, and its results would be of two kinds. "
            "Put it back as it was, or give another --name to start a sweep of its own"
        )
    return scenario


async def _find_run(ctx: Context, work: Work) -> ScenarioRun | None:
    """The run of this attempt that was started and whose id we never heard: not every endpoint knows our keys again."""
    if work.benchmark_run is None:
        return None
    runs = await ctx.endpoint.list_runs(benchmark_run=work.benchmark_run, scenario=work.key.scenario)
    return next((run for run in runs if run.metadata == work.metadata and run.state in RUN_ALIVE), None)


async def _start_run(ctx: Context, work: Work) -> ScenarioRun:
    """Start the run; in the benchmark run that follows, if somebody has ended ours. Raises SweepCanceled."""
    timeouts, summary = ctx.config.timeouts, work.summary
    while True:
        try:
            return await ctx.endpoint.start_run(
                work.key.scenario,
                benchmark_run_id=work.benchmark_run,
                name=f"{work.arm.name}/{work.key.number}/{work.number}",
                metadata=work.metadata,
                keep_alive=timeouts.keep_alive(agent=summary.agent_timeout, scorer=summary.scorer_timeout),
                needs=needs_of(ctx.config, work.arm.agent),
                key=work.idempotency_key("start"),
            )
        except (Conflicted, Missing):
            if ctx.benchmark_runs is None or work.benchmark_run is None:
                raise
            following = await ctx.benchmark_runs.following(work.key.arm, work.key.number, work.benchmark_run)
            if following == work.benchmark_run:
                raise
            work.benchmark_run = following


def needs_of(config: SweepConfig, agent: Agent) -> Needs:
    """What devboxes need for an agent."""
    return Needs(
        hosts=agent.hosts if config.network == "agent" else (),
        is_closed=config.network == "none",
        is_open=config.network == "host",
        install=agent.install,
        secrets=agent.endpoint_secrets,
    )


async def boot(ctx: Context, work: Work) -> Facts:
    """Wait until the devbox runs."""
    run: ScenarioRun = given(work.run, "the run")
    open_workspace(ctx, work, await ctx.endpoint.wait_running(run.devbox_id))
    return {}


def open_workspace(ctx: Context, work: Work, devbox: Devbox, left: Attempt | None = None) -> None:
    """Make the workspace of a devbox that runs; `left` is what an earlier process knew of the attempt."""
    scenario: Scenario = given(work.scenario, "the scenario")

    def announce(execution: str) -> None:
        ctx.sink.append_nowait(ExecutionStarted(trial=str(work.key), attempt=work.number, execution=execution))

    def keep(offset: int, length: int) -> None:
        ctx.sink.append_nowait(OutputKept(trial=str(work.key), attempt=work.number, offset=offset, length=length))

    async def vouch(execution: str) -> int | None:
        settlement = await settle(ctx, work, execution)
        return settlement.exit_status if settlement else None

    log = work.folder / LOG
    work.list_file("agent_log", log)
    work.workspace = DevboxWorkspace(
        ctx.endpoint,
        devbox,
        working_directory=devbox.working_directory or scenario.working_directory or devbox.home,
        key=work.idempotency_key,
        announce=announce,
        keep=keep,
        log=log,
        left=left,
        redactor=ctx.redactor,
        vouch=vouch,
    )


async def settle(ctx: Context, work: Work, execution: str | None = None) -> Settlement | None:
    """Have what the agent left settled. Raises WorldError, and Conflicted while its execution goes on."""
    run: ScenarioRun = given(work.run, "the run")
    return await ctx.endpoint.agent_ended(run.id, scoring=ctx.config.scoring, devbox=run.devbox_id, execution=execution)


async def prepare(ctx: Context, work: Work) -> Facts:
    """Install the agent, then remember how things stand."""
    run: ScenarioRun = given(work.run, "the run")
    await work.arm.agent.prepare(given(work.workspace, "the workspace"))
    if not await ctx.endpoint.agent_begins(run.id):
        await take_snapshot(work)
    return {}


async def solve(ctx: Context, work: Work) -> Facts:
    """Let the agent work. How it ended is a fact; whether that is a failure is the user's choice."""
    workspace: DevboxWorkspace = given(work.workspace, "the workspace")
    log = AgentLog(work.folder / LOG, ctx.redactor)
    with _logging(work, log) as write:
        try:
            work.result = await work.arm.agent.solve(_task(ctx, work), workspace, write)
        except AgentTimedOut as error:
            work.result = Result(exit_status=None, message=str(error))
    if workspace.is_log_incomplete:
        work.flag(Flag.LOG_INCOMPLETE)
    if workspace.is_log_truncated or log.is_truncated:
        work.flag(Flag.LOG_TRUNCATED)
    _judge_agent(ctx, work, work.result)
    return {
        "exit_status": work.result.exit_status,
        "exit_reason": work.result.exit_reason,
        "usage": dict(work.result.usage),
        "flags": list(work.flags),
    }


async def gather(ctx: Context, work: Work) -> Facts:
    """Bring home what scoring would mix with hidden tests; what the agent left running has ended before."""
    await bring_home(ctx, work, await settle(ctx, work))
    return gathered(work)


def gathered(work: Work) -> Facts:
    """What has come home, all of it or not: whoever goes on from here does not bring it again."""
    return {"files": dict(work.files), "network": work.network, "flags": list(work.flags)}


async def score(ctx: Context, work: Work) -> Facts:
    """Have the run scored and take the result. Raises ScoringFault when any scoring function is in error."""
    run: ScenarioRun = given(work.run, "the run")
    work.scorings += 1
    if run.state != "scoring" and (run.state not in RUN_RESULT or _faults(run)):
        await _ask_for_score(ctx, work, run)
    if run.state not in RUN_RESULT or _faults(run):
        work.run = await ctx.endpoint.wait_scored(run.id)
    scored: ScenarioRun = await _judged(ctx, work)
    for scorer in scored.scorers:
        log = f"scorers/{path_part(scorer.name)}.log"
        await work.keep(f"scorer_{scorer.name}", log, scorer.output.encode(errors="replace"))
    if scored.state == "failed":
        await unchanged_scenario(ctx, work)
    if words := _faults(scored):
        await _take_verifier_files(ctx, work)
        raise ScoringFault(f"scoring failed: {words}")
    if scored.state not in RUN_RESULT or scored.score is None:
        await _explain_lost(ctx, scored)
    _flag_judged(work, scored)
    await _take_verifier_files(ctx, work)
    return {"score": scored.score}


async def _take_verifier_files(ctx: Context, work: Work) -> None:
    """Bring home what the tests wrote beside their score; it holds no score up, and is not what the agent left."""
    if work.workspace is None:  # the result was there before we came
        return
    try:
        with anyio.fail_after(VERIFIER_PATIENCE):
            if (settlement := await settle(ctx, work)) is not None:
                await bring_verifier_home(ctx, work, settlement)
    except (WorldError, TimeoutError, OSError, ValueError) as error:
        structlog.get_logger().warning("verifier.incomplete", trial=str(work.key), error=str(error))


def _flag_judged(work: Work, run: ScenarioRun) -> None:
    """Flag what belongs beside a score: an endpoint that does not say where it scores does so beside the agent."""
    judgement = run.judgement or Judgement(mode="live")
    if judgement.broken:
        work.flag(Flag.DEVBOX_BROKEN_BY_AGENT)
    if judgement.mode == "live" or judgement.was_live:
        work.flag(Flag.SCORED_LIVE)
    if judgement.system_changed:
        work.flag(Flag.SYSTEM_CHANGED)


async def _judged(ctx: Context, work: Work) -> ScenarioRun:
    """The run once a scorer has said something: where the service could ask none, it is told to try again, later.

    Returned as it is when its devbox is gone, or when that was tried for a minute.
    """
    run: ScenarioRun = given(work.run, "the run")
    for number, pause in enumerate((1.0, 2.0, 4.0, 8.0, 15.0, 30.0), 1):
        if run.state != "failed" or run.scorers:
            break
        await unchanged_scenario(ctx, work)
        if (await ctx.endpoint.devbox(run.devbox_id)).status in DEVBOX_DEAD:
            break
        structlog.get_logger().warning("score.unheard", trial=str(work.key), run=run.id)
        await anyio.sleep(pause)
        await ctx.endpoint.score(run.id, key=work.idempotency_key(f"score-{work.scorings}-{number}"))
        work.run = run = await ctx.endpoint.wait_scored(run.id)
    return run


def _faults(run: ScenarioRun) -> str:
    """What the scorers in error said; nothing if none is."""
    faulty = [scorer for scorer in run.scorers if scorer.is_faulty]
    return "; ".join(f"{scorer.name}: {scorer.output.strip()[-400:] or 'no output'}" for scorer in faulty)


async def _ask_for_score(ctx: Context, work: Work, run: ScenarioRun) -> None:
    """Start the scoring, or find it started: not every endpoint takes a second order for the first."""
    try:
        await ctx.endpoint.score(run.id, key=work.idempotency_key(f"score-{work.scorings}"))
    except Conflicted:
        if (await ctx.endpoint.run(run.id)).state not in RUN_RESULT | {"scoring"}:
            raise


async def release(ctx: Context, work: Work) -> Facts:
    """Complete a scored run, cancel any other; the devbox goes with it, or by itself where that gets no answer."""
    run = work.run or await _find_run(ctx, work)
    if run is None:
        return {}
    try:
        with anyio.fail_after(ctx.config.timeouts.release / 2):
            await (ctx.endpoint.complete if run.state in RUN_RESULT else ctx.endpoint.cancel)(run.id)
    except (Unavailable, TimeoutError):
        await ctx.endpoint.shutdown(run.devbox_id)
    return {}


STEPS: Final[Mapping[Stage, Step]] = {
    Stage.START: start,
    Stage.BOOT: boot,
    Stage.PREPARE: prepare,
    Stage.SOLVE: solve,
    Stage.GATHER: gather,
    Stage.SCORE: score,
    Stage.RELEASE: release,
}


def _task(ctx: Context, work: Work) -> Task:
    scenario, run = given(work.scenario, "the scenario"), given(work.run, "the run")
    agent = work.arm.agent
    return Task(
        scenario_id=scenario.id,
        scenario_name=scenario.name,
        prompt=scenario.prompt,
        time_limit=ctx.config.timeouts.solve_for(work.summary.agent_timeout),
        started=partial(_note_process, ctx, work),
        folder=work.folder,
        log=work.folder / LOG,
        devbox_id=run.devbox_id,
        endpoint=ctx.endpoint.url,
        upstream=lambda: (ctx.endpoint.url, ctx.endpoint.token),
        model=work.arm.config.model,
        settings=work.arm.config.settings,
        reference_output=scenario.reference_output if agent.needs_reference else None,
    )


def _note_process(ctx: Context, work: Work, pid: int) -> None:
    ctx.sink.append_nowait(AgentStarted(trial=str(work.key), attempt=work.number, pid=pid, birth=birth(pid)))


@contextmanager
def _logging(work: Work, log: AgentLog) -> Iterator[Callable[[bytes], None]]:
    """Gives what takes what a process of ours prints, which cannot wait for the disk; the log is begun with it."""

    def attempting(act: Callable[[], None]) -> None:
        try:
            if log.is_closed:
                log.open()
            act()
        except OSError as error:
            structlog.get_logger().warning("log.cut", trial=str(work.key), error=str(error))

    try:
        yield lambda data: attempting(partial(log.write_nowait, data))
    finally:
        if not log.is_closed:
            attempting(log.finish_nowait)
            log.close()


def _judge_agent(ctx: Context, work: Work, result: Result) -> None:
    """Flag an agent that timed out or crashed; raise where the user wants that to be a failure."""
    if result.exit_status == 0:
        return
    work.flag(Flag.AGENT_TIMED_OUT if result.is_timed_out else Flag.AGENT_CRASHED)
    if ctx.config.on_agent_failure == "score":
        return
    if result.is_timed_out:
        raise AgentTimedOut(result.message or "the agent used up its time")
    raise AgentCrashed(result.message or f"the agent ended with exit status {result.exit_status}")


async def _explain_lost(ctx: Context, run: ScenarioRun) -> None:
    """Raise the error that says why a run has no result."""
    devbox = await ctx.endpoint.devbox(run.devbox_id)
    if devbox.status in DEVBOX_DEAD:
        raise DevboxLost(f"devbox {devbox.id} was gone before the score: {devbox.failure or devbox.status}")
    if run.state in {"canceled", "timeout"}:
        raise RunLost(f"run {run.id} was ended by somebody else: {run.state}")
    if run.state == "failed":
        raise ScoringFault(f"run {run.id} failed without a scorer's word")
    raise WorldError(f"run {run.id} has no score and is {run.state}")
