"""What a sweep would do now, and why: the dry run. No service is started, no file changed, no lock taken."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio

from orchestrator.commands.endpoints import Where, find_benchmark, open_endpoint, where
from orchestrator.commands.exit_codes import EXIT_OK
from orchestrator.commands.offline_catalog import Shelf
from orchestrator.commands.run_sweep import (
    deadline_of,
    fit_open_files,
    load_arms,
    make_plan,
    network_notices,
    supply_arms,
    support_notices,
    unasked,
)
from orchestrator.core.config import SweepConfig, Timeouts
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted
from orchestrator.core.records import TrialKey
from orchestrator.core.selection import Selection, TrialAction, TrialDecision, decisions
from orchestrator.endpoint.protocols import Definitions
from orchestrator.engine.context import Arm
from orchestrator.rundir.journal import Reader
from orchestrator.rundir.sweep_index import Holder, as_typed, find_folder, holder, refuse_elsewhere
from orchestrator.view.console import say, say_json

#: Trials named for each reason; `--json` names them all.
NAMED: Final = 12
#: What the plan repeats of the configuration.
LIMITS: Final = (
    "devboxes",
    "agents",
    "rate",
    "attempts",
    "deadline",
    "max_cost",
    "max_devbox_hours",
    "max_failures",
)
ACTIVE: Final = (TrialAction.AGAIN, TrialAction.TAKE_UP, TrialAction.RUN)


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What was found out. `folder` is None for a new sweep; `why` says why it is new where that may surprise."""

    config: SweepConfig
    plan: Plan
    arms: Mapping[str, Arm]
    folder: Path | None
    why: str
    ledger: Ledger
    at_work: Holder | None
    found: Sequence[TrialDecision]

    @property
    def counts(self) -> Mapping[TrialAction, int]:
        return Counter(each.action for each in self.found)


async def run(config: SweepConfig, *, runs: Path, again: Selection, as_json: bool, given: Mapping[str, str]) -> int:
    """Tell what would run; returns the exit code. Raises UsageError for what the sweep would refuse."""
    fit_open_files(config)
    deadline_of(config)
    place, name = where(config.benchmark, endpoint=config.endpoint, isolation=config.isolation, runs=runs)
    arms = await load_arms(config.arms, config.python, given, place=place)
    if config.name is not None:
        refuse_elsewhere(runs / config.name, place.endpoint, config.isolation)
    async with _definitions(place) as source:
        benchmark = await find_benchmark(source, name)
        arms = await supply_arms(arms, source)
        plan = await make_plan(config, benchmark, arms, source)
    found = find_folder(runs, config, plan, arms, endpoint=place.endpoint, is_again=bool(again))
    folder = found.path
    ledger = Ledger() if folder is None else (await anyio.to_thread.run_sync(Reader, folder)).ledger
    dry = DryRun(
        config=config,
        plan=plan,
        arms=arms,
        folder=folder,
        why=found.why,
        ledger=ledger,
        at_work=holder(folder) if folder else None,
        found=list(decisions(plan, ledger, again)),
    )
    (_as_json if as_json else _as_text)(dry)
    return EXIT_OK


@asynccontextmanager
async def _definitions(place: Where) -> AsyncIterator[Definitions]:
    if place.endpoint is None:
        yield Shelf(place.folders)
    else:
        async with open_endpoint(place) as endpoint:
            yield endpoint


def _as_json(dry: DryRun) -> None:
    config, plan = dry.config, dry.plan
    names = {scenario.id: scenario.name for scenario in plan.scenarios}
    head: dict[str, Any] = {
        "event": "plan",
        "folder": str(dry.folder) if dry.folder else None,
        "why_new": dry.why or None,
        "in_use_by": dry.at_work.name if dry.at_work else None,
        "benchmark": plan.benchmark,
        "scenarios": len(plan.scenarios),
        "arms": plan.arms,
        "trials": len(plan),
        "limits": {name: getattr(config, name) for name in LIMITS},
        "timeouts": config.timeouts.model_dump(),
        "network": config.network,
        "scoring": config.scoring,
        "reaches": {each.name: each.network for each in plan.scenarios if each.network},
        "unsupported": {each.name: each.unsupported for each in plan.scenarios if each.unsupported},
        "skipped_unsupported": {each.name: each.unsupported for each in plan.left_out},
        "counts": {action.value: dry.counts.get(action, 0) for action in TrialAction},
    }
    lines = [
        {"event": "trial"}
        | {"scenario": key.scenario, "scenario_name": names[key.scenario], "arm": key.arm, "trial": key.number}
        | {"fate": each.action, "why": each.why}
        for each in dry.found
        for key in (each.trial,)
    ]
    for line in (head, *lines):
        say_json(line)


def _as_text(dry: DryRun) -> None:
    for line in (*_head(dry), *_reasons(dry), "This was a dry run: nothing was started or changed."):
        say(line)


def _head(dry: DryRun) -> list[str]:
    config, plan, folder = dry.config, dry.plan, dry.folder
    active = sum(dry.counts.get(action, 0) for action in ACTIVE)
    sizes = (
        f"{counted(len(plan.scenarios), 'scenario')} x {counted(len(plan.arms), 'arm')} x "
        f"{counted(plan.trials, 'trial')} of each = {len(plan)}"
    )
    limits = [
        f"{name.replace('_', ' ')} {getattr(config, name)}" for name in LIMITS if getattr(config, name) is not None
    ]
    what = f"This would go on with {folder.name} ({folder})" if folder else "This would be a new sweep"
    lines = [f"{what}: {active} of {counted(len(plan), 'trial')} to run.", *filter(None, [dry.why])]
    if folder and dry.at_work:
        lines.append(f"Now it is in use by {dry.at_work.name}: `sweep attach {as_typed(folder)}`.")
    return [
        *lines,
        f"Benchmark: {plan.benchmark}, {sizes}",
        f"Arms:      {', '.join(plan.arms)}",
        f"Limits:    {', '.join(limits)}",
        f"Scoring:   {config.scoring}{', as each scenario says' if config.scoring == 'declared' else ''}",
        f"Timeouts:  {_timeouts(dry)}",
        *network_notices(config, plan.scenarios),
        *support_notices(plan),
        *unasked(plan, dry.ledger),
    ]


def _timeouts(dry: DryRun) -> str:
    """Seconds for each stage, from the least to the most where scenarios and agents differ."""
    timeouts = dry.config.timeouts
    asked = [arm.summary_of(scenario) for scenario in dry.plan.scenarios for arm in dry.arms.values()]
    solve = [timeouts.solve_for(summary.agent_timeout) for summary in asked]
    score = [timeouts.score_for(summary.scorer_timeout) for summary in asked]
    spans = {"solve": (min(solve), max(solve)), "score": (min(score), max(score))}
    fixed = {name: (seconds, seconds) for name, seconds in timeouts.model_dump().items() if name not in spans}
    ordered = {name: (fixed | spans)[name] for name in Timeouts.model_fields}
    return ", ".join(
        f"{name} {low:g} s" if low == high else f"{name} {low:g}-{high:g} s" for name, (low, high) in ordered.items()
    )


def _reasons(dry: DryRun) -> list[str]:
    """A line for each action and reason: how many, why, and which, as far as they are few."""
    groups: dict[tuple[TrialAction, str], list[TrialKey]] = {}
    for each in dry.found:
        groups.setdefault((each.action, each.why), []).append(each.trial)
    order = list(TrialAction)
    lines = []
    for (action, why), keys in sorted(groups.items(), key=lambda group: order.index(group[0][0])):
        shown = ", ".join(_label(key, dry.plan) for key in keys[:NAMED])
        more = f" and {len(keys) - NAMED} more (--json names all)" if len(keys) > NAMED else ""
        lines.append(f"{action:>10} {len(keys):>5}  {why}: {shown}{more}")
    return lines


def _label(key: TrialKey, plan: Plan) -> str:
    name = next(scenario.name for scenario in plan.scenarios if scenario.id == key.scenario)
    arm = f" {key.arm}" if len(plan.arms) > 1 else ""
    return f"{name}{arm} #{key.number}" if plan.trials > 1 else f"{name}{arm}"
