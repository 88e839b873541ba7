"""A sweep from its configuration to its exit code: opens, wires, runs, closes."""

import os
import random
import re
import resource
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, Final

import anyio
import structlog

from orchestrator import __version__
from orchestrator.agentkit import loader
from orchestrator.commands import AGENTS, exit_codes
from orchestrator.commands.endpoints import GREETING_S, Where, find_benchmark, open_endpoint, where_of
from orchestrator.commands.live_status import LiveStatus
from orchestrator.commands.observers import observing
from orchestrator.commands.write_report import write_at_end
from orchestrator.common import logging_setup
from orchestrator.common.locks import RISK
from orchestrator.core import errors, events, records
from orchestrator.core.config import ArmConfig, SweepConfig
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan, select, unmatched
from orchestrator.core.printable import byte_size, counted, printable
from orchestrator.core.selection import Selection, TrialAction, decisions, named
from orchestrator.endpoint.protocols import SETTLEMENTS, Definitions, Endpoint
from orchestrator.engine import (
    budgets,
    control,
    lifecycle,
    prefetch,
    scheduler,
    shutdown,
    stage_table,
    watchdog,
    worker,
)
from orchestrator.engine.benchmark_runs import BenchmarkRuns
from orchestrator.engine.circuit_breaker import Breaker
from orchestrator.engine.concurrency import Limits
from orchestrator.engine.context import Arm, Context
from orchestrator.engine.redact import NO_SECRETS, MaskingSink, Redactor
from orchestrator.engine.remote_state import Presence, Remote
from orchestrator.engine.rescoring import unscored
from orchestrator.rundir.control_socket import take_orders
from orchestrator.rundir.files import MANIFEST
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.manifest import keep_config
from orchestrator.rundir.sweep_index import choose_folder, refuse_elsewhere
from orchestrator.view import notify
from orchestrator.view.console import leave_screen
from orchestrator.view.formats import LINES, Format
from orchestrator.view.progress import HiddenProgress, Progress, tell_slow_phases
from orchestrator.view.report import CHECK

#: Open files of a devbox: a wait, a stream, a call and a log; and those that are open anyway.
FILES_PER_DEVBOX: Final = 5
FILES_OF_OURS: Final = 64
NOTHING_AGAIN: Final = Selection()
NOTHING_GIVEN: Final[Mapping[str, str]] = {}
TOO_SHORT: Final = "Not masked in any file, because the values are too short: {}."
WORDS: Final = "Not masked in patches and artifacts, because the values are common words: {}."
OPEN_NETWORK: Final = "--network host: agents reach everything that their devbox's host reaches."
ROOM: Final = "These scenarios start from {} ({} here{}), which take about {}; there is room for {}."
SHORT: Final = "So trials of one image run one after the other, and what is not needed any more makes room."
#: The word in a scenario's network for every public host.
INTERNET: Final = "internet"
PUBLIC_NETWORK: Final = "These scenarios have internet access: {}. `--network none` closes it."
NAMED_HOSTS: Final = "These scenarios ask for access to hosts: {}. `--network none` closes it."
#: Scenarios that a notice names.
SHOWN: Final = 12
#: Characters of a reason.
LONGEST: Final = 160
#: Scenarios named for one reason.
NAMED: Final = 3
#: The place in a file, in a reason.
_LINE: Final = re.compile(r": line \d+(?=: )")
UNSUPPORTED: Final = (
    "{} of {} scenarios cannot run here, and each of their trials fails; --skip-unsupported leaves them out:"
)
UNMET: Final = "{} of {} scenarios give something that an agent does not take; --skip-unsupported leaves them out:"
LEFT_OUT: Final = "--skip-unsupported leaves out {}:"
UNASKED: Final = "{} of this folder {} not asked for now."
UNCOUNTED: Final = "What {} spends is not counted: its agent file does not say where its cost_usd is ([usage])."
NOT_ENDED: Final = "The endpoint did not end {} runs or devboxes of this sweep: `sweep reap` lists and ends them."
#: The time in which an endpoint must list its scenarios.
LISTING_S: Final = 300.0
#: The time for closing the benchmark runs when nothing is left to do; the next run closes those that are left open.
COMPLETING_S: Final = 60.0
#: The time for the last event to reach the disk.
LAST_EVENT_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescoring:
    """Results whose work is scored again, by trial, and trials that are to be already, `left` by an earlier process.

    Those of `spoilt` cannot be: they are flagged where their scenario is another now than it was in the sweep's `plan`.
    The `arms` stand for those of the sweep, and run no agent.
    """

    arms: Mapping[str, Arm]
    kept: Mapping[records.TrialKey, Mapping[str, Any]]
    left: frozenset[records.TrialKey]
    spoilt: Mapping[records.TrialKey, Mapping[str, Any]]
    plan: Plan

    def need_same(self, plan: Plan) -> None:
        """Raise UsageError for a newer benchmark with other scenarios; what is in them may be another."""
        now, then = ({each.id: each.name for each in each_plan.scenarios} for each_plan in (plan, self.plan))
        gone, new = ([name for id_, name in a.items() if id_ not in b] for a, b in ((then, now), (now, then)))
        if plan.benchmark == self.plan.benchmark and (gone or new):
            words = [f"it lacks {', '.join(gone[:5])}"] * bool(gone) + [f"{', '.join(new[:5])} is new"] * bool(new)
            raise errors.UsageError(
                f"The benchmark has other scenarios than the sweep: {'; '.join(words)}. Give one that has the same, by "
                "name; their tests may be others."
            )

    def outdated(self, scenarios: Iterable[records.ScenarioSummary]) -> Mapping[records.TrialKey, Mapping[str, Any]]:
        """Return the results that cannot be scored again, of scenarios that are others now."""
        changed = self._changed(scenarios)
        return {key: result for key, result in self.spoilt.items() if key.scenario in changed}

    def restarts(self, scenarios: Iterable[records.ScenarioSummary]) -> Iterator[events.OrderGiven]:
        """Order that what an earlier process began to score by scenarios that are others now is begun again."""
        changed = self._changed(scenarios)
        if keys := sorted(key for key in self.left if key.scenario in changed):
            words = f"requeued {counted(len(keys), 'trial')}, whose scenarios were changed since their rescoring began"
            yield events.OrderGiven(order="requeue", words=words, by="sweep rescore", trials=tuple(map(str, keys)))

    def _changed(self, scenarios: Iterable[records.ScenarioSummary]) -> Collection[str]:
        """Return the ids of those that are others now than in the plan."""
        digests = {each.id: each.digest for each in self.plan.scenarios}
        return {each.id for each in scenarios if each.digest != digests.get(each.id, each.digest)}


async def load_arms(
    configs: Sequence[ArmConfig],
    python: Path | None,
    given: Mapping[str, str],
    *,
    place: Where,
    tell: Callable[[str], None] = lambda _: None,
) -> Mapping[str, Arm]:
    """Find and check the agents of all arms, before anything is spent. Raises UsageError.

    `given` are variables of the user's beside the environment. A variable that an agent lacks may be a secret of an
    endpoint elsewhere: `supply_arms` decides. An arm without a model has its agent's own. `tell` is called with what
    takes long. Agents on this machine do not get the addresses of people.
    """
    arms, environ = {}, {**os.environ, **given}
    environ.pop(notify.VARIABLE, None)
    for config in configs:
        agent = loader.load(
            config.agent,
            python=python,
            search=AGENTS,
            settings=config.settings,
            environ=environ,
            model=config.model,
            secret=given.keys(),
        )
        if place.endpoint is None:
            agent = loader.supply(agent)
        await loader.check(agent, tell)
        arms[config.name] = Arm(config=config.model_copy(update={"model": agent.model}), agent=agent)
    return arms


def secrets_of(arms: Mapping[str, Arm]) -> Collection[str]:
    """The variables that are secret to any of the arms."""
    return {name for arm in arms.values() for name in arm.agent.secrets}


def redactor_of(arms: Mapping[str, Arm], variables: Mapping[str, str], addresses: Iterable[str] = ()) -> Redactor:
    """Make the redactor that keeps the secrets of all arms and scenarios, and our own, out of what is written.

    Ours are the endpoint's key, and the addresses to which notifications go.
    """
    ours = [("RUNLOOP_API_KEY", os.environ.get("RUNLOOP_API_KEY", "")), *variables.items()]
    ours += [(notify.VARIABLE, each) for each in addresses]
    return Redactor([*ours, *(pair for arm in arms.values() for pair in arm.agent.secrets.items())])


def variables_of(scenarios: Sequence[records.ScenarioSummary], given: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables that scenarios take from whoever runs them: those `given`, else our environment's.

    Raises UsageError naming scenarios and variables where one that is required is missing.
    """
    environ = {**os.environ, **given}
    lacking: dict[str, list[str]] = {}
    for each in scenarios:
        required = {*each.required, *(name for name, is_required in each.context.variables.items() if is_required)}
        for name in sorted(required) if not each.unsupported else ():
            if name not in environ:
                lacking.setdefault(name, []).append(each.name)
    if lacking:
        told = "; ".join(f"{name}, which {_named(names)} cannot do without" for name, names in lacking.items())
        raise errors.UsageError(
            f"There is no variable {told}. Set it, or name a file that has it by --env-file; --exclude leaves a "
            "scenario out."
        )
    names = (name for each in scenarios for name in (*each.variables, *each.context.variables))
    return {name: environ[name] for name in names if name in environ}


async def supply_arms(arms: Mapping[str, Arm], endpoint: Definitions) -> Mapping[str, Arm]:
    """Take the variables that agents lack from the endpoint's secrets; returns the arms. Raises UsageError."""
    if not any(loader.lacking(arm.agent) for arm in arms.values()):
        return arms
    try:
        with anyio.fail_after(LISTING_S):
            names = await endpoint.secret_names()
    except TimeoutError:
        raise errors.Unavailable(f"{endpoint.url} did not list its secrets in {LISTING_S:g} s.") from None
    return {name: replace(arm, agent=loader.supply(arm.agent, names)) for name, arm in arms.items()}


async def run(
    config: SweepConfig,
    *,
    runs: Path,
    output: Format | None,
    file: Path | None = None,
    again: Selection = NOTHING_AGAIN,
    given: Mapping[str, str] = NOTHING_GIVEN,
    begun: Callable[[Path], None] = lambda _: None,
    rescoring: Rescoring | None = None,
    signals: Collection[signal.Signals] = shutdown.SIGNALS,
) -> int:
    """Run a sweep to its end, or to a stop; returns the exit code. Raises UsageError before anything is spent.

    `file` is the sweep.toml that the config is from; the run folder keeps a copy. `again` selects trials to run again.
    `given` are variables for the agents beside the environment. `begun` is called with the run folder once it is ours.
    With `rescoring` nothing runs but that. Without `output` nothing is printed. `signals` are those that stop it.
    """
    fit_open_files(config)
    ledger = Ledger()
    spending = budgets.Budgets(config=config, ledger=ledger, deadline=budgets.deadline_of(config))
    stopping = shutdown.Stopping(spending.used_up)
    state = LiveStatus(
        stopping=stopping,
        budgets=spending,
        limits=Limits(devboxes=config.devboxes, agents=config.agents),
        watchdog=watchdog.Watchdog(lambda _: stopping.check()),
    )
    with (
        anyio.CancelScope() as opening,
        shutdown.obeying_signals(stopping, drain=config.drain, leave=leave_screen, signals=signals),
        state.watchdog.watching(),
    ):
        stopping.open(opening)
        async with anyio.create_task_group() as tasks:
            if output is not None:
                tasks.start_soon(tell_slow_phases, state, output, state.opened)
            return await _run(
                config,
                state,
                ledger,
                runs=runs,
                output=output,
                file=file,
                again=again,
                given=given,
                begun=begun,
                rescoring=rescoring,
            )
    return exit_codes.EXIT_INTERRUPTED


async def _run(
    config: SweepConfig,
    state: LiveStatus,
    ledger: Ledger,
    *,
    runs: Path,
    output: Format | None,
    file: Path | None,
    again: Selection,
    given: Mapping[str, str],
    begun: Callable[[Path], None],
    rescoring: Rescoring | None,
) -> int:
    tell = partial(setattr, state, "step")
    place, name = await where_of(config, runs, tell=tell)
    arms = rescoring.arms if rescoring else await load_arms(config.arms, config.python, given, place=place, tell=tell)
    is_known = config.name is not None and (runs / config.name / MANIFEST).exists()
    if config.name is not None:  # before a key goes to another endpoint than the sweep's
        refuse_elsewhere(runs / config.name, place.endpoint, config.isolation)
    stopping, limits = state.stopping, state.limits
    state.step = f"connecting to {place.endpoint}" if place.endpoint else "starting the service"
    hidden = secrets_of(arms)
    notifiers = notify.notifiers_of(config.notify, {**os.environ, **given}, {"RUNLOOP_API_KEY", *hidden, *given})
    async with open_endpoint(place, rate=config.rate, on_push_back=limits.push_back, hidden=hidden) as endpoint:
        benchmark = await find_benchmark(endpoint, name, config.unreachable if is_known else GREETING_S)
        arms = await supply_arms(arms, endpoint)
        plan = await make_plan(config, benchmark, arms, endpoint)
        if rescoring:
            rescoring.need_same(plan)
        variables = variables_of(plan.scenarios, given)
        redactor = redactor_of(arms, variables, (secret for each in notifiers for secret in each.secrets))
        named(plan, again)  # a mistake in it costs nothing yet
        await check_needs(config, arms, endpoint)
        told = await notices_of(endpoint, config, plan.scenarios)
        room = await room_for(endpoint, plan)
        plan = replace(plan, is_by_environment=room.is_short, origin=place.origin)
        kept = rescoring.kept if rescoring else {}
        outdated = rescoring.outdated(plan.scenarios) if rescoring else {}
        to_rescore = frozenset(kept) | rescoring.left if rescoring else frozenset()
        choose = partial(
            choose_folder,
            runs,
            config,
            plan,
            arms,
            endpoint=place.endpoint,
            is_again=bool(again),
            may_change=frozenset(key.scenario for key in (*to_rescore, *outdated)),
        )
        state.step = "opening the journal"
        folder = await anyio.to_thread.run_sync(choose)
        async with Journal.open(folder.path, ledger, lock=config.lock) as journal:
            logging_setup.to_file(folder.path / "sweep.log", mask=redactor.value)
            if file is not None:
                folder.keep_settings(file, Redactor((notify.VARIABLE, each) for each in config.notify).mask)
            presence = Presence(endpoint, folder.sweep)
            await presence.claim()
            ctx = make_context(
                config,
                sweep=folder.sweep,
                folder=folder.path,
                benchmark=benchmark,
                scenarios=plan.scenarios,
                arms=arms,
                endpoint=endpoint,
                sink=MaskingSink(journal, redactor),
                ledger=ledger,
                limits=limits,
                redactor=redactor,
                variables=variables,
            )
            state.ctx, state.journal = ctx, journal
            found = list(decisions(plan, ledger, again)) if again else []
            chosen = (
                frozenset(each.trial for each in found if each.action is not TrialAction.LEAVE) if again.only else plan
            )
            await ctx.sink.append(
                events.SweepOpened(sweep=ctx.sweep, schema=events.SCHEMA, version=__version__, pid=os.getpid()),
                *(events.TrialReopened(trial=str(each.trial)) for each in found if each.action is TrialAction.AGAIN),
                *(
                    events.TrialReopened(trial=str(key), kept=result)
                    for key, result in (*kept.items(), *outdated.items())
                ),
                *(rescoring.restarts(plan.scenarios) if rescoring else ()),
                *(
                    events.TrialFinished(trial=str(key), attempt=ledger.trials[key].attempts, result=unscored(result))
                    for key, result in outdated.items()
                ),
            )
            begun(folder.path)
            doing = "Rescoring" if rescoring else "Resuming" if folder.is_resumed else "Starting"
            progress = (Progress if output else HiddenProgress)(
                ledger=ledger,
                plan=plan,
                state=state,
                folder=folder.path,
                output=output or LINES,
                opening=f"{doing} {folder.path.name}",
            )
            state.opened.set()
            progress.say(*filter(None, [folder.why]), *_notices(ctx, plan), *room_notices(room), *told)
            if rescoring:
                chosen = to_rescore
            if again.only:
                now = sum(key in chosen for key in plan.pending(ledger))
                progress.say(f"Of these {now} run now, as --only says; the others stay pending.")
            async with observing(state, ctx, plan, chosen, notifiers=notifiers, say=progress.say):
                try:
                    await _conduct(ctx, plan, chosen, state, progress, presence, has_images=room.images > 0)
                finally:
                    await presence.leave()
                    for arm in arms.values():
                        with anyio.move_on_after(5, shield=True):
                            await arm.agent.aclose()
    await write_at_end(folder.path)
    if stopping.fault is not None:
        raise stopping.fault
    code, reasons = exit_codes.verdict(chosen, plan, ledger, config, is_stopped=stopping.is_by_signal)
    progress.say(*reasons)
    return code


async def room_for(endpoint: Endpoint, plan: Plan) -> records.RoomEstimate:
    """The room for the images of a plan; of none, where the endpoint does not say soon."""
    environments = dict.fromkeys(
        environment for each in plan.scenarios if not each.unsupported for environment in each.environments
    )
    with suppress(errors.WorldError), anyio.move_on_after(GREETING_S):
        return await endpoint.room_for(list(environments))
    return records.RoomEstimate()


def room_notices(room: records.RoomEstimate) -> Iterator[str]:
    """A notice of how much room images want, where there are any."""
    if room.images:
        unknown = f", {room.unknown} of unknown size" if room.unknown else ""
        words = ROOM.format(
            counted(room.images, "image"), room.here, unknown, byte_size(room.wanted), byte_size(room.room)
        )
        yield f"{words} {SHORT}" if room.is_short else words


def _notices(ctx: Context, plan: Plan) -> Iterator[str]:
    """Warnings worth showing before a long run starts."""
    if ctx.config.lock == "none":
        yield RISK.format(ctx.folder)
    if ctx.redactor.unmasked:
        yield TOO_SHORT.format(", ".join(ctx.redactor.unmasked))
    if ctx.redactor.words:
        yield WORDS.format(", ".join(ctx.redactor.words))
    limited = [arm for arm in ctx.arms.values() if ctx.config.max_cost is not None or arm.config.cost is not None]
    if silent := [arm.name for arm in limited if not loader.tells_cost(arm.agent)]:
        yield UNCOUNTED.format(", ".join(silent))
    yield from network_notices(ctx.config, plan.scenarios)
    yield from support_notices(plan)
    yield from unasked(plan, ctx.ledger)


def network_notices(config: SweepConfig, scenarios: Sequence[records.ScenarioSummary]) -> Iterator[str]:
    """Notices of network access that something else than an agent asks for."""
    if config.network == "host":
        yield OPEN_NETWORK
    if config.network != "agent":
        return
    scenarios = [each for each in scenarios if not each.unsupported]
    if public := [each.name for each in scenarios if INTERNET in each.network]:
        yield PUBLIC_NETWORK.format(_named(public))
    hosts = {each.name: ", ".join(host for host in each.network if host != INTERNET) for each in scenarios}
    if naming := [f"{name} ({reached})" for name, reached in hosts.items() if reached]:
        yield NAMED_HOSTS.format(_named(naming))


def support_notices(plan: Plan) -> Iterator[str]:
    """Notices of scenarios that cannot run or lack something they ask for, and of patterns that select nothing."""
    yield from plan.notes
    unsupported = [each for each in plan.scenarios if each.unsupported]
    if unsupported:
        yield UNSUPPORTED.format(len(unsupported), len(plan.scenarios))
        yield from _reasons(unsupported)
    if plan.left_out:
        yield LEFT_OUT.format(counted(len(plan.left_out), "scenario"))
        yield from _reasons(plan.left_out)
    asking: dict[str, list[str]] = {}
    for scenario in plan.scenarios:
        for note in scenario.notes if not scenario.unsupported else ():
            asking.setdefault(note, []).append(scenario.name)
    for note, names in asking.items():
        yield f"{len(names)} of {len(plan.scenarios)} scenarios, {printable(note)}: {_named(names)}"


def unasked(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """A notice of results in the folder that are not in the table."""
    if count := sum(key not in plan for key in ledger.finished):
        yield UNASKED.format(counted(count, "finished trial"), "is" if count == 1 else "are")


def _reasons(scenarios: Sequence[records.ScenarioSummary]) -> Iterator[str]:
    """A line for each of the commonest reasons; reasons that differ by a line number only are one."""
    groups: dict[str, list[str]] = {}
    for each in scenarios:
        why = _LINE.sub("", each.unsupported.partition("; ")[0])
        groups.setdefault(shorten(printable(why), LONGEST, placeholder=" …"), []).append(each.name)
    commonest = sorted(groups.items(), key=lambda group: -len(group[1]))
    for why, names in commonest[:SHOWN]:
        yield (
            f"  {printable(names[0])}: {why}" if len(names) == 1 else f"  {len(names)} x {why}: {_named(names, NAMED)}"
        )
    if len(commonest) > SHOWN:
        yield f"  and {len(commonest) - SHOWN} more reasons: `{CHECK}` names them"


def _named(names: Sequence[str], shown: int = SHOWN) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return printable(f"{', '.join(names[:shown])}{more}")


async def notices_of(
    endpoint: Endpoint, config: SweepConfig, scenarios: Sequence[records.ScenarioSummary]
) -> Sequence[str]:
    """The endpoint's own notices; none if it does not answer soon."""
    is_online = config.network == "agent" and any(INTERNET in each.network for each in scenarios)
    with suppress(errors.WorldError), anyio.move_on_after(GREETING_S):
        return await endpoint.notices(is_online=is_online)
    return ()


async def check_needs(config: SweepConfig, arms: Mapping[str, Arm], endpoint: Endpoint) -> None:
    """Check that devboxes of this endpoint can have what the sweep needs. Raises UsageError."""
    if config.scoring in {"separate", "shared"} and SETTLEMENTS not in await endpoint.features():
        raise errors.UsageError(
            f"--scoring {config.scoring} needs devboxes in sandboxes of a `sweep serve`, and {endpoint.url} has none. "
            "Without it, scorers run in the agent's devbox."
        )
    for arm in arms.values():
        await endpoint.check(stage_table.needs_of(config, arm.agent))


async def make_plan(
    config: SweepConfig, benchmark: records.Benchmark, arms: Mapping[str, Arm], endpoint: Definitions
) -> Plan:
    """Make the plan of trials.

    Raises UsageError for an empty selection, for a scenario that gives what an agent does not take, and for time limits
    that no devbox lives for.
    """
    is_filtered = bool(config.include or config.exclude or config.skip_unsupported)
    try:
        with anyio.fail_after(LISTING_S):
            at_most = None if is_filtered else config.limit
            summaries = await endpoint.summaries(benchmark, at_most, include=config.include, exclude=config.exclude)
            if not config.include and len(summaries) != config.limit:
                await _refuse_unusable(benchmark, {summary.id for summary in summaries}, endpoint)
    except TimeoutError:
        raise errors.Unavailable(
            f"{endpoint.url} did not list the scenarios of {benchmark.name} in {LISTING_S:g} s."
        ) from None
    chosen = select(summaries, include=config.include, exclude=config.exclude, limit=None)
    if config.skip_unsupported:
        chosen = tuple(replace(each, unsupported=each.unsupported or unmet(arms, each)) for each in chosen)
    left_out = tuple(each for each in chosen if each.unsupported) if config.skip_unsupported else ()
    scenarios = tuple(each for each in chosen if not (left_out and each.unsupported))[: config.limit]
    if not scenarios:
        reasons = "; ".join(map(str.strip, _reasons(left_out)))
        raise errors.UsageError(
            f"No scenario is left to run. {LEFT_OUT.format(counted(len(left_out), 'scenario'))} {reasons}"
        )
    lacking = [replace(each, unsupported=why) for each in scenarios if (why := unmet(arms, each))]
    if lacking:
        raise errors.UsageError("\n".join((UNMET.format(len(lacking), len(scenarios)), *_reasons(lacking))))
    for scenario in (arm.summary_of(each) for each in scenarios if not each.unsupported for arm in arms.values()):
        config.timeouts.keep_alive(scenario)
    return Plan(
        benchmark=benchmark.name,
        scenarios=scenarios,
        arms=tuple(arms),
        trials=config.trials,
        left_out=left_out,
        notes=tuple(unmatched(summaries, config.exclude, "--exclude")),
    )


def unmet(arms: Mapping[str, Arm], scenario: records.ScenarioSummary) -> str:
    """Say what the scenario gives beside its problem statement that an agent does not take; empty if all take all."""
    if scenario.unsupported:
        return ""
    found = {arm.agent.name: ", ".join(arm.agent.unmet(scenario.context)) for arm in arms.values()}
    return " and ".join(f"agent {name} does not take {what}" for name, what in found.items() if what)


async def _refuse_unusable(benchmark: records.Benchmark, usable: AbstractSet[str], endpoint: Definitions) -> None:
    """Raise UsageError if the endpoint cannot run a scenario of the benchmark, with its reason.

    Without it the scenario would be missing from every mean, unseen.
    """
    unusable = [identity for identity in benchmark.scenario_ids if identity not in usable]
    for identity in unusable:
        try:
            await endpoint.scenario(identity)
        except errors.Refused as error:
            raise errors.UsageError(
                f"{benchmark.name} has scenarios that cannot be run ({len(unusable)}): {error}. "
                "Fix them, or run the others: --include '*'."
            ) from None


def fit_open_files(config: SweepConfig) -> None:
    """Raise the soft limit on open files. Raises UsageError for more devboxes than the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = (hard - FILES_OF_OURS) // FILES_PER_DEVBOX
    if hard != resource.RLIM_INFINITY and config.devboxes > room:
        raise errors.UsageError(
            f"--devboxes {config.devboxes} needs more open files than this machine grants ({hard}): "
            f"use at most {room}, or raise the limit (ulimit -n)."
        )


def make_context(
    config: SweepConfig,
    *,
    sweep: str,
    folder: Path,
    benchmark: records.Benchmark,
    has_benchmark_runs: bool = True,
    scenarios: Iterable[records.ScenarioSummary],
    arms: Mapping[str, Arm],
    endpoint: Endpoint,
    sink: events.Sink,
    ledger: Ledger,
    limits: Limits,
    redactor: Redactor = NO_SECRETS,
    variables: Mapping[str, str] = NOTHING_GIVEN,
) -> Context:
    """Wire the parts of the engine; `sweep` is the sweep's id, and `folder` its run folder."""
    runs = BenchmarkRuns(sweep=sweep, benchmark_id=benchmark.id, endpoint=endpoint, sink=sink, ledger=ledger)
    return Context(
        sweep=sweep,
        benchmark=benchmark.name,
        config=config,
        endpoint=endpoint,
        sink=sink,
        ledger=ledger,
        limits=limits,
        folder=folder,
        arms=arms,
        scenarios={scenario.id: scenario for scenario in scenarios},
        benchmark_runs=runs if has_benchmark_runs else None,
        remote=Remote(sweep, endpoint),
        dice=random.random,
        breaker=Breaker(same_failures=config.same_failures, unreachable=config.unreachable),
        silence=watchdog.Silence(endpoint, unreachable=config.unreachable),
        redactor=redactor,
        variables=variables,
    )


async def _conduct(
    ctx: Context,
    plan: Plan,
    chosen: Collection[records.TrialKey],
    state: LiveStatus,
    progress: Progress,
    presence: Presence,
    *,
    has_images: bool,
) -> None:
    """Run the pending trials and show progress; afterwards nothing runs any more."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(budgets.watch, state.stopping)
        tasks.start_soon(progress.show)
        tasks.start_soon(presence.keep, progress.say)
        if has_images:
            tasks.start_soon(prefetch.prepare_ahead, ctx, lambda: filter(chosen.__contains__, plan.pending(ctx.ledger)))
        try:
            await lifecycle.finish_canceled(ctx)
            await lifecycle.end_requeued(ctx)
            await lifecycle.finish_unsupported(ctx, filter(chosen.__contains__, plan.pending(ctx.ledger)))
            pending = plan.pending_by_arm(ctx.ledger)
            queues = scheduler.queues_of(ctx, {arm: filter(chosen.__contains__, keys) for arm, keys in pending.items()})
            left = [key for key in chosen if ctx.ledger.has_run(key)]
            state.scheduler, state.step = scheduler.Scheduler(queues, state.stopping, left), ""
            orders = control.Control(
                ctx=ctx,
                plan=plan,
                chosen=chosen,
                scheduler=state.scheduler,
                stopping=state.stopping,
                budgets=state.budgets,
                keep=lambda config: anyio.to_thread.run_sync(keep_config, ctx.folder, config),
                tell=progress.say,
                fit=fit_open_files,
            )
            tasks.start_soon(take_orders, ctx.folder, orders.obey)
            await worker.run_all(ctx, state.scheduler, state.stopping)
            if ctx.remote.refusing:
                progress.say(NOT_ENDED.format(len(ctx.remote.refusing)))
            state.step = "completing"
            await complete(ctx, plan, state.stopping)
        except anyio.get_cancelled_exc_class():  # by the program that we run in
            with anyio.move_on_after(LAST_EVENT_S, shield=True), suppress(errors.JournalError):
                await ctx.sink.append(events.SweepEnded(reason=f"stopped: {exit_codes.CANCELED}"))
            raise
        finally:
            tasks.cancel_scope.cancel()
    progress.finish()


async def complete(ctx: Context, plan: Plan, stopping: shutdown.Stopping) -> None:
    """Close the benchmark runs if no trial is pending, and journal how the sweep ended. Bounded."""
    is_finished = next(plan.pending(ctx.ledger), None) is None
    with anyio.CancelScope(deadline=anyio.current_time() + COMPLETING_S) as closing:
        stopping.bind(closing)
        if is_finished and ctx.benchmark_runs is not None:
            try:
                await ctx.benchmark_runs.complete_all()
            except errors.WorldError as error:
                structlog.get_logger().warning("benchmark_runs.not_completed", error=error.message)
    how = exit_codes.INTERRUPTED if stopping.is_by_signal else "stopped"
    reason = "finished" if is_finished else f"{how}: {stopping.reason or exit_codes.NOT_SELECTED}"
    try:
        with anyio.move_on_after(LAST_EVENT_S, shield=True):
            await ctx.sink.append(events.SweepEnded(reason=reason))
    except errors.JournalError:
        if not stopping.is_by_signal:
            raise
