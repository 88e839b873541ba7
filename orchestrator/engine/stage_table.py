"""The stages of an attempt as one table: its work, time limit and successor, and the effect of a crash or an error.

A stage's function does its work on the endpoint, fills in the state of the attempt, and returns facts worth a journal
line. It runs inside its limit and raises the errors of `errors.py`; `lifecycle` journals, retries and releases.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import anyio
import structlog

from orchestrator.agentkit.agent import Agent, Result, Task, Where
from orchestrator.agentkit.kept_work import KEPT
from orchestrator.common.locks import birth
from orchestrator.core import errors, events, records
from orchestrator.core.config import SweepConfig, Timeouts
from orchestrator.core.ledger import Attempt, Trial
from orchestrator.core.protocol import DEVBOX_DEAD, RUN_ALIVE, RUN_RESULT, RunState
from orchestrator.core.retry_policy import MAX_DELAYS, MAX_INTERRUPTIONS, Action, Decision, RetryRule, decide, rule
from orchestrator.core.stages import Stage
from orchestrator.engine.agent_log import AgentLog
from orchestrator.engine.artifacts.collect import collect, collect_verifier_files, take_snapshot
from orchestrator.engine.context import AttemptState, Context, given
from orchestrator.engine.rescoring import crossed, kept_part
from orchestrator.engine.workspace import DevboxWorkspace
from orchestrator.rundir.files import AGENT_LOG

#: Seconds to collect what the tests wrote beside their score.
VERIFIER_FILES_S: Final = 60.0

Facts = Mapping[str, Any]


async def _fail(_ctx: Context, _state: AttemptState, error: errors.SweepError) -> bool:
    raise error


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEntry:
    """One stage in the table.

    `limit` gives its seconds. `next` follows it, unless the run has its result by then. `on_resume` gives the stage in
    which a new process resumes an attempt that it finds in this one, None if it cannot. Errors of the types `catches`
    go to `on_error`: it raises, returns true to take the stage again, or false to continue with the next one.
    """

    run: Callable[[Context, AttemptState], Awaitable[Facts]]
    limit: Callable[[Timeouts, records.ScenarioSummary], float]
    next: Stage | None
    on_resume: Callable[[Where], Stage | None]
    catches: tuple[type[errors.SweepError], ...] = ()
    on_error: Callable[[Context, AttemptState, errors.SweepError], Awaitable[bool]] = _fail


async def start(ctx: Context, state: AttemptState) -> Facts:
    """Start the scenario run; its id and its devbox's are durable before anything is done in that devbox."""
    state.scenario = await unchanged_scenario(ctx, state)
    if ctx.benchmark_runs is not None:
        state.benchmark_run = await ctx.benchmark_runs.of(state.key.arm, state.key.number)
    state.run = (await _find_run(ctx, state) if state.is_again else None) or await _start_run(ctx, state)
    ctx.sink.append_nowait(
        events.RunStarted(trial=str(state.key), attempt=state.number, run=state.run.id, devbox=state.run.devbox_id)
    )
    if state.run.state not in RUN_ALIVE | RUN_RESULT:
        raise errors.Interrupted(f"run {state.run.id}, which this attempt had started before, is {state.run.state}")
    return {}


async def unchanged_scenario(ctx: Context, state: AttemptState) -> records.Scenario:
    """Read the scenario. Raises SweepHalted if it is not what the sweep began with: results would not compare."""
    scenario = await ctx.endpoint.scenario(state.key.scenario)
    if scenario.digest and state.summary.digest and scenario.digest != state.summary.digest:
        raise errors.SweepHalted(
            f"scenario {scenario.name} was changed while the sweep ran, and its results would be of two kinds. "
            "Put it back as it was, or give another --name to start a sweep of its own"
        )
    return scenario


async def _find_run(ctx: Context, state: AttemptState) -> records.ScenarioRun | None:
    """Find a run that this attempt started but never got the id of: not every endpoint knows idempotency keys."""
    if state.benchmark_run is None:
        return None
    runs = await ctx.endpoint.list_runs(benchmark_run=state.benchmark_run, scenario=state.key.scenario)
    return next((run for run in runs if run.metadata == state.metadata and run.state in RUN_ALIVE), None)


async def _start_run(ctx: Context, state: AttemptState) -> records.ScenarioRun:
    """Start the run; in the benchmark run that follows, if somebody has ended ours. Raises SweepCanceled."""
    while True:
        try:
            return await ctx.endpoint.start_run(
                state.key.scenario,
                benchmark_run_id=state.benchmark_run,
                name=f"{state.arm.name}/{state.key.number}/{state.number}",
                metadata=state.metadata,
                keep_alive=ctx.config.timeouts.keep_alive(state.whole),
                needs=needs_of(ctx.config, state.arm.agent),
                key=state.idempotency_key("start"),
                variables={name: ctx.variables[name] for name in state.whole.variables if name in ctx.variables},
            )
        except (errors.Conflicted, errors.Missing):
            if ctx.benchmark_runs is None or state.benchmark_run is None:
                raise
            following = await ctx.benchmark_runs.following(state.key.arm, state.key.number, state.benchmark_run)
            if following == state.benchmark_run:
                raise
            state.benchmark_run = following


def needs_of(config: SweepConfig, agent: Agent) -> records.Needs:
    """Devbox requirements of an agent in this sweep."""
    return records.Needs(
        hosts=agent.hosts if config.network == "agent" else (),
        is_closed=config.network == "none",
        is_open=config.network == "host",
        install=agent.install,
        secrets=agent.endpoint_secrets,
    )


async def boot(ctx: Context, state: AttemptState) -> Facts:
    """Wait until the devbox runs. The time in which its image is fetched or built counts for no limit."""

    def preparing(words: str) -> None:
        ctx.preparing[state.key] = words
        state.limit.deadline = max(state.limit.deadline, anyio.current_time() + ctx.config.timeouts.boot)

    try:
        devbox = await ctx.endpoint.wait_running(given(state.run, "the run").devbox_id, preparing=preparing)
    finally:
        ctx.preparing.pop(state.key, None)
    open_workspace(ctx, state, devbox)
    return {}


def open_workspace(ctx: Context, state: AttemptState, devbox: records.Devbox, left: Attempt | None = None) -> None:
    """Make the workspace of a running devbox; `left` is the attempt as an earlier process journaled it."""
    scenario = given(state.scenario, "the scenario")

    def announce(execution: str) -> None:
        ctx.sink.append_nowait(events.ExecutionStarted(trial=str(state.key), attempt=state.number, execution=execution))

    def keep(offset: int, length: int) -> None:
        ctx.sink.append_nowait(
            events.OutputKept(trial=str(state.key), attempt=state.number, offset=offset, length=length)
        )

    async def vouch(execution: str) -> int | None:
        settlement = await settle(ctx, state, execution)
        return settlement.exit_status if settlement else None

    log = state.folder / AGENT_LOG
    state.list_file("agent_log", log)
    state.workspace = DevboxWorkspace(
        ctx.endpoint,
        devbox,
        working_directory=devbox.working_directory or scenario.working_directory or devbox.home,
        key=state.idempotency_key,
        announce=announce,
        keep=keep,
        log=log,
        left=left,
        redactor=ctx.redactor,
        vouch=vouch,
        moving=ctx.silence.moving,
    )


async def settle(ctx: Context, state: AttemptState, execution: str | None = None) -> records.Settlement | None:
    """End what the agent left running. Raises WorldError; Conflicted while `execution` still runs."""
    run, workspace = given(state.run, "the run"), given(state.workspace, "the workspace")
    return await ctx.endpoint.agent_ended(
        run.id,
        scoring=ctx.config.scoring,
        devbox=run.devbox_id,
        execution=execution,
        kept=f"{workspace.scratch}/{KEPT}" if state.kept and crossed(kept_part(state)) else None,
    )


async def take_result(ctx: Context, state: AttemptState, error: errors.SweepError) -> bool:
    """Read the run: it may be scored already. The journal had lost sight of that, or the agent broke its devbox.

    Raises `error` if it has no result, and SweepHalted where no devbox came up since the scenario was changed.
    """
    state.run = await ctx.endpoint.run(given(state.run, "the run").id)
    if not state.run.has_result:
        if isinstance(error, errors.DevboxFailed):
            await unchanged_scenario(ctx, state)
        raise error
    return False


async def prepare(ctx: Context, state: AttemptState) -> Facts:
    """Install the agent, but for a later step; then have the devbox ready for it, and a snapshot of its files."""
    if not state.steps:
        await state.arm.agent.prepare(_task(ctx, state), given(state.workspace, "the workspace"))
    try:
        is_noted = await ctx.endpoint.agent_begins(given(state.run, "the run").id)
    except errors.Conflicted as error:
        if not state.whole.steps:
            raise
        raise errors.DevboxFailed(f"step {state.step_name} could not begin: {error.message}") from None
    if not is_noted:
        await take_snapshot(state)
    return {}


async def solve(ctx: Context, state: AttemptState) -> Facts:
    """Let the agent work. How it ended is a fact; `--on-agent-failure` says whether that is a failure.

    Raises AgentTimedOut and AgentCrashed where it is.
    """
    workspace = given(state.workspace, "the workspace")
    log = AgentLog(state.folder / AGENT_LOG, ctx.redactor)
    with _logging(state, log) as write:
        try:
            state.result = await state.arm.agent.solve(_task(ctx, state), workspace, write)
        except errors.AgentTimedOut as error:
            state.result = Result(exit_status=None, message=str(error))
    if workspace.is_log_incomplete:
        state.flag(records.Flag.LOG_INCOMPLETE)
    if workspace.is_log_truncated or log.is_truncated:
        state.flag(records.Flag.LOG_TRUNCATED)

    result = state.result
    if result.is_timed_out:
        state.flag(records.Flag.AGENT_TIMED_OUT)
    elif result.exit_status != 0:
        state.flag(records.Flag.AGENT_CRASHED)
    if ctx.config.on_agent_failure == "fail":
        if result.is_timed_out:
            raise errors.AgentTimedOut(result.message or "the agent used up its time")
        if result.exit_status != 0:
            raise errors.AgentCrashed(result.message or f"the agent ended with exit status {result.exit_status}")
    return {
        "exit_status": result.exit_status,
        "exit_reason": result.exit_reason,
        "usage": dict(result.usage),
        "flags": list(state.flags),
    }


def _task(ctx: Context, state: AttemptState) -> Task:
    scenario = given(state.scenario, "the scenario").in_step(len(state.steps))
    run, agent = given(state.run, "the run"), state.arm.agent

    def note_process(pid: int) -> None:
        ctx.sink.append_nowait(
            events.AgentStarted(trial=str(state.key), attempt=state.number, pid=pid, birth=birth(pid))
        )

    return Task(
        scenario_id=scenario.id,
        scenario_name=scenario.name,
        prompt=scenario.prompt,
        time_limit=ctx.config.timeouts.solve_for(state.summary.agent_timeout),
        started=note_process,
        folder=state.folder,
        log=state.folder / AGENT_LOG,
        devbox_id=run.devbox_id,
        endpoint=ctx.endpoint.url,
        upstream=lambda: (ctx.endpoint.url, ctx.endpoint.token),
        model=state.arm.config.model,
        settings=state.arm.config.settings,
        reference_output=scenario.reference_output if agent.needs_reference else None,
        context=scenario.context.filled(ctx.variables),
        step=state.step_name if state.whole.steps else "",
    )


@contextmanager
def _logging(state: AttemptState, log: AgentLog) -> Iterator[Callable[[bytes], None]]:
    """Yield a non-blocking callback that appends a host agent's output to the log, which the first write opens."""

    def attempting(act: Callable[[], None]) -> None:
        try:
            if log.is_closed:
                log.open()
            act()
        except OSError as error:
            structlog.get_logger().warning("log.cut", trial=str(state.key), error=str(error))

    try:
        yield lambda data: attempting(partial(log.write_nowait, data))
    finally:
        if not log.is_closed:
            attempting(log.finish_nowait)
            log.close()


async def gather(ctx: Context, state: AttemptState) -> Facts:
    """Collect the agent's files before scoring adds hidden tests; its processes have ended by then."""
    await collect(ctx, state, await settle(ctx, state))
    return _gathered(state)


def _gathered(state: AttemptState) -> Facts:
    """All that was collected, complete or not: a process that resumes after this stage does not collect again."""
    return {"files": dict(state.files), "network": state.network, "flags": list(state.flags)}


async def note_missing(ctx: Context, state: AttemptState, error: errors.SweepError) -> bool:
    """Flag that a part was not collected, and call the stage finished: it fails nothing."""
    flag_incomplete(state, error.message)
    note_finished(ctx, state, Stage.GATHER, _gathered(state))
    return False


def flag_incomplete(state: AttemptState, reason: str) -> None:
    """Flag that a part of what the agent left was not collected, with the reason in the log."""
    state.flag(records.Flag.GATHER_INCOMPLETE)
    structlog.get_logger().warning("gather.incomplete", trial=str(state.key), error=reason)


async def score(ctx: Context, state: AttemptState) -> Facts:
    """Have the run scored and take the result. Raises ScoringFault when any scoring function is in error."""
    run = state.judged
    state.scorings += 1
    if run.state != RunState.SCORING and (run.state not in RUN_RESULT or _faults(run)):
        try:
            await ctx.endpoint.score(run.id, key=state.idempotency_key(f"score-{state.scorings}"))
        except errors.Conflicted:  # it was started before: not every endpoint knows idempotency keys
            if (await ctx.endpoint.run(run.id)).state not in RUN_RESULT | {RunState.SCORING}:
                raise
    if run.state not in RUN_RESULT or _faults(run):
        state.run = await ctx.endpoint.wait_scored(run.id)
        await _ask_again_unscored(ctx, state)

    scored = state.judged
    for scorer in scored.scorers:
        log = f"scorers/{records.path_part(scorer.name)}.log"
        await state.keep(f"scorer_{scorer.name}", log, scorer.output.encode(errors="replace"))
    if scored.state == RunState.FAILED:
        await unchanged_scenario(ctx, state)
    if words := _faults(scored):
        await _collect_verifier_files(ctx, state)
        raise errors.ScoringFault(f"scoring failed: {words}")
    if scored.state not in RUN_RESULT or (scored.score is None and not scored.steps):
        await _explain_lost(ctx, scored)

    judgement = scored.judgement or records.Judgement(
        mode="live"
    )  # an endpoint that does not say scores beside the agent
    if judgement.broken:
        state.flag(records.Flag.DEVBOX_BROKEN_BY_AGENT)
    if judgement.mode == "live" or judgement.was_live:
        state.flag(records.Flag.SCORED_LIVE)
    if judgement.system_changed:
        state.flag(records.Flag.SYSTEM_CHANGED)
    await _collect_verifier_files(ctx, state)
    return {"score": scored.score}


async def _ask_again_unscored(ctx: Context, state: AttemptState) -> None:
    """Ask for the score again while no scorer could be started; the run then says so, and asks to be tried later.

    Gives up when its devbox is gone, or after a minute.
    """
    run = given(state.run, "the run")
    for number, pause in enumerate((1.0, 2.0, 4.0, 8.0, 15.0, 30.0), 1):
        if run.state != RunState.FAILED or run.scorers:
            break
        await unchanged_scenario(ctx, state)
        if (await ctx.endpoint.devbox(run.devbox_id)).status in DEVBOX_DEAD:
            break
        structlog.get_logger().warning("score.unheard", trial=str(state.key), run=run.id)
        await anyio.sleep(pause)
        await ctx.endpoint.score(run.id, key=state.idempotency_key(f"score-{state.scorings}-{number}"))
        state.run = run = await ctx.endpoint.wait_scored(run.id)


def _faults(run: records.ScenarioRun) -> str:
    """The last words of each scorer in error; empty if none is."""
    faulty = [scorer for scorer in run.scorers if scorer.is_faulty]
    return "; ".join(f"{scorer.name}: {scorer.output.strip()[-400:] or 'no output'}" for scorer in faulty)


async def _collect_verifier_files(ctx: Context, state: AttemptState) -> None:
    """Collect what the tests wrote beside their score. A failure is logged only: it holds up no score."""
    if state.workspace is None:  # the result was there before we came
        return
    try:
        with anyio.fail_after(VERIFIER_FILES_S):
            if (settlement := await settle(ctx, state)) is not None:
                await collect_verifier_files(ctx, state, settlement)
    except (errors.WorldError, TimeoutError, OSError, ValueError) as error:
        structlog.get_logger().warning("verifier.incomplete", trial=str(state.key), error=str(error))


async def _explain_lost(ctx: Context, run: records.ScenarioRun) -> None:
    """Raise the error that says why a run has no result."""
    devbox = await ctx.endpoint.devbox(run.devbox_id)
    if devbox.status in DEVBOX_DEAD:
        raise errors.DevboxLost(f"devbox {devbox.id} was gone before the score: {devbox.failure or devbox.status}")
    if run.state in {RunState.CANCELED, RunState.TIMEOUT}:
        raise errors.RunLost(f"run {run.id} was ended by somebody else: {run.state}")
    if run.state == RunState.FAILED:
        raise errors.ScoringFault(f"run {run.id} failed without a scorer's word")
    raise errors.WorldError(f"run {run.id} has no score and is {run.state}")


async def score_again(ctx: Context, state: AttemptState, error: errors.SweepError) -> bool:
    """Score again while the scorers are at fault and tries are left. Raises the last fault."""
    state.faults += 1
    if decision_on(ctx, state, error, rule(error)).action is not Action.SCORE_AGAIN:
        raise error
    structlog.get_logger().info("score.again", trial=str(state.key), error=error.message)
    return True


async def release(ctx: Context, state: AttemptState) -> Facts:
    """Complete a scored run, cancel any other; the devbox goes with it, or by itself where that gets no answer."""
    run, trial = state.run, ctx.ledger.trials.get(state.key)
    if run is None and trial is not None and trial.attempt is not None and trial.attempt.run is not None:
        run = await ctx.endpoint.run(trial.attempt.run)  # an earlier process began it, and it was not taken up yet
    run = run or await _find_run(ctx, state)
    if run is None:
        return {}
    try:
        with anyio.fail_after(ctx.config.timeouts.release / 2):
            await (ctx.endpoint.complete if run.state in RUN_RESULT else ctx.endpoint.cancel)(run.id)
    except (errors.Unavailable, TimeoutError):
        await ctx.endpoint.shutdown(run.devbox_id)
    return {}


async def note_unreleased(_ctx: Context, state: AttemptState, error: errors.SweepError) -> bool:
    """Log a release that failed: the devbox's keep-alive, or the next resume, ends what is left."""
    structlog.get_logger().warning("release.failed", trial=str(state.key), error=error.message)
    return False


def decision_on(ctx: Context, state: AttemptState, error: errors.SweepError, its_rule: RetryRule) -> Decision:
    """Decide what follows a failure, by its rule and by how often it was tried."""
    trial = ctx.ledger.trials.get(state.key) or Trial()
    tries, allowed = {
        "attempts": (trial.counted + 1, ctx.config.attempts),
        "scorings": (state.faults, ctx.config.scorings),
        "delays": (ctx.delays[state.key] + 1, MAX_DELAYS),
        "interruptions": (trial.interrupted + 1, MAX_INTERRUPTIONS),
        None: (ctx.delays[state.key] + 1, None),
    }[its_rule.bound]
    return decide(error, its_rule, tries=tries, allowed=allowed, dice=ctx.dice())


def note_finished(ctx: Context, state: AttemptState, stage: Stage, facts: Facts) -> None:
    """Journal that a stage is finished, with its facts and times."""
    ctx.sink.append_nowait(
        events.StageFinished(
            trial=str(state.key), attempt=state.number, stage=stage, **state.stages[stage.value], facts=facts
        )
    )


STAGES: Final[Mapping[Stage, StageEntry]] = {
    Stage.START: StageEntry(
        run=start,
        limit=lambda timeouts, _scenario: timeouts.start,
        next=Stage.BOOT,
        on_resume=lambda _where: Stage.BOOT,
    ),
    Stage.BOOT: StageEntry(
        run=boot,
        limit=lambda timeouts, _scenario: timeouts.boot,
        next=Stage.PREPARE,
        on_resume=lambda _where: Stage.BOOT,
        catches=(errors.DevboxFailed,),
        on_error=take_result,
    ),
    Stage.PREPARE: StageEntry(
        run=prepare,
        limit=lambda timeouts, _scenario: timeouts.prepare,
        next=Stage.SOLVE,
        on_resume=lambda _where: None,  # half an install is no install
        catches=(errors.DevboxFailed,),
        on_error=take_result,
    ),
    Stage.SOLVE: StageEntry(
        run=solve,
        # The agent's own limit is enforced in the devbox; this one is the backstop.
        limit=lambda timeouts, scenario: timeouts.solve_for(scenario.agent_timeout) + 2 * timeouts.start,
        next=Stage.GATHER,
        on_resume=lambda where: Stage.SOLVE if where == "devbox" else None,  # a host agent died with its sweep
        catches=(errors.WorldError,),
        on_error=take_result,
    ),
    Stage.GATHER: StageEntry(
        run=gather,
        limit=lambda timeouts, _scenario: timeouts.gather,
        next=Stage.SCORE,
        on_resume=lambda _where: Stage.GATHER,
        catches=(errors.WorldError,),
        on_error=note_missing,
    ),
    Stage.SCORE: StageEntry(
        run=score,
        limit=lambda timeouts, scenario: timeouts.score_for(scenario.scorer_timeout) + timeouts.start,
        next=None,
        on_resume=lambda _where: Stage.SCORE,
        catches=(errors.SweepError,),
        on_error=score_again,
    ),
    Stage.RELEASE: StageEntry(
        run=release,
        limit=lambda timeouts, _scenario: timeouts.release,
        next=None,
        on_resume=lambda _where: None,
        catches=(errors.WorldError,),
        on_error=note_unreleased,
    ),
}
