"""The dry run: what a sweep would do now, and why. No service is started, no file changed, no lock taken."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from orchestrator.commands import run_sweep
from orchestrator.commands.endpoints import find_benchmark, open_endpoint, where_of
from orchestrator.commands.exit_codes import EXIT_OK
from orchestrator.core.config import SweepConfig, Timeouts
from orchestrator.core.errors import Refused
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted
from orchestrator.core.records import Benchmark, Scenario, ScenarioSummary
from orchestrator.core.selection import Selection, TrialAction, TrialDecision, decisions
from orchestrator.endpoint.parsing import summary_of
from orchestrator.engine import budgets
from orchestrator.engine.context import Arm
from orchestrator.rundir.journal import Reader
from orchestrator.rundir.sweep_index import Holder, as_typed, find_folder, holder, refuse_elsewhere
from orchestrator.service.definitions.catalog import Catalog, Choice
from orchestrator.service.errors import BadRequest
from orchestrator.view.console import print_record, say
from orchestrator.view.formats import Format, Record
from orchestrator.view.notify import notifiers_of

if TYPE_CHECKING:
    from orchestrator.endpoint.protocols import Endpoint

#: Trials named for each reason; `--json` names them all.
NAMED: Final = 12
#: Scenarios read at a time: they carry whole scripts.
_BATCH: Final = 200
#: What the plan repeats of the configuration.
LIMITS: Final = ("devboxes", "agents", "rate", "attempts", "deadline", "max_cost", "max_devbox_hours", "max_failures")
ACTIVE: Final = (TrialAction.AGAIN, TrialAction.TAKE_UP, TrialAction.RUN)


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """The result. `folder` is None for a new sweep; `why` explains a new one where it may surprise."""

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

    def records(self) -> list[Record]:
        config, plan = self.config, self.plan
        names = {scenario.id: scenario.name for scenario in plan.scenarios}
        head: Record = {
            "event": "plan",
            "folder": str(self.folder) if self.folder else None,
            "why_new": self.why or None,
            "in_use_by": self.at_work.name if self.at_work else None,
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
            "counts": {fate.value: self.counts.get(fate, 0) for fate in TrialAction},
        }
        trials: list[Record] = [
            {
                "event": "trial",
                "scenario": each.trial.scenario,
                "scenario_name": names[each.trial.scenario],
                "arm": each.trial.arm,
                "trial": each.trial.number,
                "fate": each.action,
                "why": each.why,
            }
            for each in self.found
        ]
        return [head, *trials]

    def text_lines(self) -> list[str]:
        config, plan, folder = self.config, self.plan, self.folder
        active = sum(self.counts.get(fate, 0) for fate in ACTIVE)
        sizes = (
            f"{counted(len(plan.scenarios), 'scenario')} x {counted(len(plan.arms), 'arm')} x "
            f"{counted(plan.trials, 'trial')} of each = {len(plan)}"
        )
        limits = [
            f"{name.replace('_', ' ')} {getattr(config, name)}" for name in LIMITS if getattr(config, name) is not None
        ]
        what = f"This would continue {folder.name} ({folder})" if folder else "This would be a new sweep"
        lines = [f"{what}: {active} of {counted(len(plan), 'trial')} to run.", *filter(None, [self.why])]
        if folder and self.at_work:
            lines.append(f"It is in use by {self.at_work.name}: `sweep attach {as_typed(folder)}`.")
        return [
            *lines,
            f"Benchmark: {plan.benchmark}, {sizes}",
            f"Arms:      {', '.join(plan.arms)}",
            f"Limits:    {', '.join(limits)}",
            f"Scoring:   {config.scoring}{', as each scenario says' if config.scoring == 'declared' else ''}",
            f"Timeouts:  {self.timeouts()}",
            *run_sweep.network_notices(config, plan.scenarios),
            *run_sweep.support_notices(plan),
            *run_sweep.unasked(plan, self.ledger),
            *self.reasons(),
            "This was a dry run: nothing was started or changed.",
        ]

    def timeouts(self) -> str:
        """Seconds for each stage, from the least to the most where scenarios and agents differ."""
        timeouts = self.config.timeouts
        asked = [arm.summary_of(scenario) for scenario in self.plan.scenarios for arm in self.arms.values()]
        parts = [part for summary in asked for part in summary.steps or (summary,)]
        solve = [timeouts.solve_for(part.agent_timeout) for part in parts]
        score = [timeouts.score_for(part.scorer_timeout) for part in parts]
        spans = {"solve": (min(solve), max(solve)), "score": (min(score), max(score))}
        fixed = {name: (seconds, seconds) for name, seconds in timeouts.model_dump().items() if name not in spans}
        ordered = {name: (fixed | spans)[name] for name in Timeouts.model_fields}
        return ", ".join(
            f"{name} {low:g} s" if low == high else f"{name} {low:g}-{high:g} s"
            for name, (low, high) in ordered.items()
        )

    def reasons(self) -> list[str]:
        """A line for each fate and reason: the number of trials, the reason, and the first of them."""
        plan, groups = self.plan, dict[tuple[TrialAction, str], list[str]]()
        names = {scenario.id: scenario.name for scenario in plan.scenarios}
        for each in self.found:
            key = each.trial
            arm = f" {key.arm}" if len(plan.arms) > 1 else ""
            label = f"{names[key.scenario]}{arm} #{key.number}" if plan.trials > 1 else f"{names[key.scenario]}{arm}"
            groups.setdefault((each.action, each.why), []).append(label)
        order, lines = list(TrialAction), []
        for (fate, why), labels in sorted(groups.items(), key=lambda group: order.index(group[0][0])):
            more = f" and {len(labels) - NAMED} more (--json names all)" if len(labels) > NAMED else ""
            lines.append(f"{fate:>10} {len(labels):>5}  {why}: {', '.join(labels[:NAMED])}{more}")
        return lines


async def run(config: SweepConfig, *, runs: Path, again: Selection, output: Format, given: Mapping[str, str]) -> int:
    """Print what would run; returns the exit code. Raises UsageError for what the sweep would refuse."""
    run_sweep.fit_open_files(config)
    budgets.deadline_of(config)
    notifiers_of(config.notify, {**os.environ, **given})
    place, name = await where_of(config, runs)
    arms = await run_sweep.load_arms(config.arms, config.python, given, place=place)
    if config.name is not None:
        refuse_elsewhere(runs / config.name, place.endpoint, config.isolation)
    opening: AbstractAsyncContextManager[Endpoint | OfflineCatalog]
    opening = nullcontext(OfflineCatalog(place.folders, rebuild=config.rebuild))
    if place.endpoint:
        opening = open_endpoint(place, rate=config.rate)
    async with opening as source:
        benchmark = await find_benchmark(source, name)
        arms = await run_sweep.supply_arms(arms, source)
        plan = await run_sweep.make_plan(config, benchmark, arms, source)
        run_sweep.variables_of(plan.scenarios, given)
        if not isinstance(source, OfflineCatalog):
            await run_sweep.check_needs(config, arms, source)
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
    if output.is_for_programs:
        for record in dry.records():
            print_record(record, output)
    else:
        for text in dry.text_lines():
            say(text)
    return EXIT_OK


class OfflineCatalog:
    """The benchmarks of folders, read as the embedded service reads them but without one: enough to make a plan."""

    url = "the embedded service"

    def __init__(self, folders: Sequence[Path], *, rebuild: bool) -> None:
        self._catalog = Catalog(folders, rebuild=rebuild)

    async def benchmarks(self) -> list[Benchmark]:
        return [
            Benchmark(id=each.id, name=each.name, scenario_ids=tuple(each.scenario_ids))
            for each in await self._catalog.benchmarks()
        ]

    async def summaries(
        self,
        benchmark: Benchmark,
        at_most: int | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> list[ScenarioSummary]:
        choice = Choice(include=tuple(include), exclude=tuple(exclude))
        ids, found = benchmark.scenario_ids, list[ScenarioSummary]()
        for start in range(0, len(ids), _BATCH):
            if at_most is None or len(found) < at_most:
                listed = await self._catalog.listed(ids[start : start + _BATCH], choice)
                found += [summary_of(each) for each in listed.values()]
        return found[:at_most]

    async def scenario(self, scenario_id: str) -> Scenario:
        """Read one scenario. Raises Refused with its problem."""
        try:
            document = await self._catalog.scenario(scenario_id)
        except BadRequest as error:
            raise Refused(error.message) from None
        if document is None:
            raise Refused(f"there is no scenario {scenario_id}")
        return Scenario(id=scenario_id, name=document["name"], prompt=document["input_context"]["problem_statement"])

    async def secret_names(self) -> frozenset[str]:
        """Return none: an embedded service has only the secrets of this environment."""
        return frozenset()
