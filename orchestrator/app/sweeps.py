"""A sweep from its configuration to its exit code: opens, wires, runs, closes."""

import os
import random
import resource
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from orchestrator import __version__, logs
from orchestrator.agentkit import loader
from orchestrator.app.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from orchestrator.app.places import find_benchmark, open_endpoint, where
from orchestrator.config import ArmConfig, SweepConfig
from orchestrator.engine.benchmark_runs import BenchmarkRuns
from orchestrator.engine.limits import Limits
from orchestrator.engine.scheduler import Scheduler
from orchestrator.engine.shutdown import Stopping, obey_signals
from orchestrator.engine.work import Arm, Context
from orchestrator.engine.worker import run_all
from orchestrator.errors import Refused, UsageError
from orchestrator.events import SCHEMA, SweepEnded, SweepOpened
from orchestrator.folder import RunFolder, choose_folder
from orchestrator.journal import Journal
from orchestrator.ledger import Ledger
from orchestrator.model import Benchmark, Outcome
from orchestrator.plan import Plan, select
from orchestrator.runloop.contract import Endpoint
from orchestrator.view.progress import Progress, Style

#: Agents of the user's own win over ours.
SEARCH: Final = (Path("agents"),)
#: Open files: a wait, a stream, a call and a log for each devbox, and what is open anyway.
FILES_PER_DEVBOX: Final = 5
FILES_OF_OURS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the picture shows of the engine."""

    stopping: Stopping
    limits: Limits

    @property
    def is_draining(self) -> bool:
        return self.stopping.is_draining

    @property
    def devboxes(self) -> int:
        return self.limits.devboxes

    @property
    def is_reduced(self) -> bool:
        return self.limits.is_reduced


async def load_arms(configs: Sequence[ArmConfig], python: Path | None) -> Mapping[str, Arm]:
    """The agents of all arms, found and checked before anything is spent. Raises UsageError."""
    arms = {}
    for config in configs:
        agent = loader.load(config.agent, python=python, search=SEARCH, settings=config.settings, environ=os.environ)
        await loader.check(agent)
        arms[config.name] = Arm(config=config, agent=agent)
    return arms


async def run(config: SweepConfig, *, runs: Path, style: Style, file: Path | None = None) -> int:
    """Run a sweep to its end, or to a stop; returns the exit code. Raises UsageError before anything is spent.

    `file` is the sweep.toml that the config came from: the run folder keeps it as given.
    """
    _fit_open_files(config)
    arms = await load_arms(config.arms, config.python)
    place, name = where(config.benchmark, endpoint=config.endpoint, isolation=config.isolation, runs=runs)
    stopping, ledger, limits = Stopping(), Ledger(), Limits(devboxes=config.devboxes, agents=config.agents)
    async with open_endpoint(place, rate=config.rate, on_push_back=limits.push_back) as endpoint:
        benchmark = await find_benchmark(endpoint, name)
        plan = await _make_plan(config, benchmark, arms, endpoint)
        folder = choose_folder(runs, config, plan, arms, endpoint=place.endpoint)
        async with Journal.open(folder.path, ledger.apply) as journal:
            logs.to_file(folder.path / "sweep.log")
            if file is not None:
                folder.keep_settings(file)
            ctx = _context(config, folder, plan, benchmark, arms, endpoint, journal, ledger, limits)
            progress = Progress(
                ledger=ledger,
                plan=plan,
                state=State(stopping=stopping, limits=limits),
                folder=folder.path,
                style=style,
                is_resumed=folder.is_resumed,
            )
            try:
                await _conduct(ctx, plan, stopping, progress)
            finally:
                for arm in arms.values():
                    with anyio.move_on_after(5, shield=True):
                        await arm.agent.aclose()
    if stopping.fault is not None:
        raise stopping.fault
    return _exit_code(plan, ledger, stopping)


async def _make_plan(config: SweepConfig, benchmark: Benchmark, arms: Mapping[str, Arm], endpoint: Endpoint) -> Plan:
    """The trials to run. Raises UsageError for a selection of nothing, and for time limits no devbox lives for."""
    is_filtered = bool(config.include or config.exclude)
    summaries = await endpoint.summaries(benchmark, None if is_filtered else config.limit)
    if not config.include and len(summaries) != config.limit:
        await _refuse_unusable(benchmark, {summary.id for summary in summaries}, endpoint)
    scenarios = select(summaries, include=config.include, exclude=config.exclude, limit=config.limit)
    for scenario in scenarios:
        config.timeouts.keep_alive(agent=scenario.agent_timeout, scorer=scenario.scorer_timeout)
    return Plan(benchmark=benchmark.name, scenarios=scenarios, arms=tuple(arms), trials=config.trials)


async def _refuse_unusable(benchmark: Benchmark, usable: AbstractSet[str], endpoint: Endpoint) -> None:
    """A scenario that the benchmark names and the endpoint has no use of would be missing from every mean, unseen.

    Raises UsageError with the endpoint's reason.
    """
    unusable = [identity for identity in benchmark.scenario_ids if identity not in usable]
    for identity in unusable:
        try:
            await endpoint.scenario(identity)
        except Refused as error:
            raise UsageError(
                f"{benchmark.name} has scenarios that cannot be run ({len(unusable)}): {error}. "
                "Mend them, or run the others: --include '*'."
            ) from None


def _fit_open_files(config: SweepConfig) -> None:
    """Raise the soft limit on open files, and refuse more devboxes than the hard one has room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = (hard - FILES_OF_OURS) // FILES_PER_DEVBOX
    if hard != resource.RLIM_INFINITY and config.devboxes > room:
        raise UsageError(
            f"--devboxes {config.devboxes} needs more open files than this machine grants ({hard}): "
            f"use at most {room}, or raise the limit (ulimit -n)."
        )


def _context(
    config: SweepConfig,
    folder: RunFolder,
    plan: Plan,
    benchmark: Benchmark,
    arms: Mapping[str, Arm],
    endpoint: Endpoint,
    journal: Journal,
    ledger: Ledger,
    limits: Limits,
) -> Context:
    benchmark_runs = BenchmarkRuns(
        sweep=folder.sweep, benchmark_id=benchmark.id, endpoint=endpoint, sink=journal, ledger=ledger
    )
    return Context(
        sweep=folder.sweep,
        benchmark=benchmark.name,
        config=config,
        endpoint=endpoint,
        sink=journal,
        ledger=ledger,
        limits=limits,
        folder=folder.path,
        arms=arms,
        scenarios={scenario.id: scenario for scenario in plan.scenarios},
        benchmark_runs=benchmark_runs,
        dice=random.random,
    )


async def _conduct(ctx: Context, plan: Plan, stopping: Stopping, progress: Progress) -> None:
    """Settle what was left, run what is owed, and leave nothing running; progress is shown meanwhile."""
    await ctx.sink.append(SweepOpened(sweep=ctx.sweep, schema=SCHEMA, version=__version__, pid=os.getpid()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(obey_signals, stopping, progress.say)
        tasks.start_soon(progress.show)
        try:
            await run_all(ctx, Scheduler(plan.pending(ctx.ledger), stopping), stopping)
            is_finished = next(plan.pending(ctx.ledger), None) is None
            if is_finished and ctx.benchmark_runs is not None:
                await ctx.benchmark_runs.complete_all()
            await ctx.sink.append(SweepEnded(reason="finished" if is_finished else "stopped"))
        finally:
            tasks.cancel_scope.cancel()
    progress.finish()


def _exit_code(plan: Plan, ledger: Ledger, stopping: Stopping) -> int:
    outcomes = [ledger.trials[key].outcome for key in plan if ledger.is_finished(key)]
    if len(outcomes) < len(plan):
        return EXIT_INTERRUPTED if stopping.is_draining else EXIT_FAILED
    return EXIT_OK if all(outcome is Outcome.SCORED for outcome in outcomes) else EXIT_FAILED
