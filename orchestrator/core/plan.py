"""The trials of a sweep, and their order. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain
from typing import Any

from orchestrator.core.errors import UsageError
from orchestrator.core.ledger import Ledger
from orchestrator.core.printable import printable
from orchestrator.core.records import ScenarioSummary, TrialKey


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep's trials: every scenario with every arm, `trials` times.

    `left_out` are selected scenarios that cannot run and are skipped because the user asked for it; `notes` are remarks
    on the selection, a sentence each. With `is_by_environment` all trials of one environment come together.
    """

    benchmark: str
    scenarios: tuple[ScenarioSummary, ...]
    arms: tuple[str, ...]
    trials: int
    left_out: tuple[ScenarioSummary, ...] = ()
    notes: tuple[str, ...] = ()
    is_by_environment: bool = False
    #: What the benchmark was made from where it was fetched, as the manifest keeps it.
    origin: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.scenarios) * len(self.arms) * self.trials

    def __iter__(self) -> Iterator[TrialKey]:
        """Every trial, scenarios as listed; arms side by side, so that an early look compares like with like."""
        groups: dict[str, list[ScenarioSummary]] = {}
        for scenario in self.scenarios:
            groups.setdefault(scenario.environment if self.is_by_environment else "", []).append(scenario)
        for scenarios in groups.values():
            for number in range(1, self.trials + 1):
                for scenario in scenarios:
                    for arm in self.arms:
                        yield TrialKey(scenario.id, arm, number)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, TrialKey):
            return False
        return key.arm in self.arms and key.number <= self.trials and key.scenario in self.scenario_ids

    @cached_property
    def scenario_ids(self) -> frozenset[str]:
        return frozenset(scenario.id for scenario in self.scenarios)

    @cached_property
    def by_id(self) -> Mapping[str, ScenarioSummary]:
        return {scenario.id: scenario for scenario in self.scenarios}

    @cached_property
    def shared_names(self) -> frozenset[str]:
        """Names that several scenarios have."""
        counts = Counter(scenario.name for scenario in self.scenarios)
        return frozenset(name for name, count in counts.items() if count > 1)

    def pending(self, ledger: Ledger) -> Iterator[TrialKey]:
        """Yield the trials without an outcome, first those with an attempt under way."""
        begun = {key: None for key, attempt in ledger.unreleased() if key in self and ledger.under_way(key) is attempt}
        return chain(begun, (key for key in self if key not in begun and not ledger.is_finished(key)))

    def pending_by_arm(self, ledger: Ledger) -> dict[str, Iterator[TrialKey]]:
        """The same for each arm by itself, so that taking from one does not walk past the trials of another."""
        return {arm: replace(self, arms=(arm,)).pending(ledger) for arm in self.arms}


def select(
    scenarios: Sequence[ScenarioSummary],
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    limit: int | None,
    option: str = "--include",
) -> tuple[ScenarioSummary, ...]:
    """The scenarios whose name or id matches an include glob and no exclude glob, the first `limit` of them.

    Raises UsageError when the selection is empty, or an include glob, given with `option`, matches nothing.
    """
    if idle := unmatched(scenarios, include, option):
        raise UsageError(idle[0])
    chosen = tuple(
        scenario
        for scenario in scenarios
        if (not include or any(_matches(scenario, glob) for glob in include))
        and not any(_matches(scenario, glob) for glob in exclude)
    )
    if not chosen:
        raise UsageError("No scenario is left to run: the benchmark is empty, or --exclude takes all of it.")
    return chosen[:limit]


def find_scenario(plan: Plan, name: str) -> ScenarioSummary:
    """The scenario of a plan with this name or id. Raises UsageError with close names."""
    found = next((each for each in plan.scenarios if name in {each.id, each.name}), None)
    if found is None:
        names = [printable(each.name) for each in plan.scenarios]
        near = get_close_matches(name, names, 3)
        hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(names[:10])}."
        raise UsageError(f"There is no scenario {name!r} in it. {hint}")
    return found


def trials_of(plan: Plan, scenario: str, *, arm: str | None = None, number: int | None = None) -> list[TrialKey]:
    """The trials of a scenario, by its name or id; those of one arm or number, if given. Raises UsageError."""
    summary = find_scenario(plan, scenario)
    if arm is not None and arm not in plan.arms:
        raise UsageError(f"There is no arm {arm!r}: --arm {' or '.join(map(printable, plan.arms))}.")
    if number is not None and not 1 <= number <= plan.trials:
        raise UsageError(f"There is no trial {number} of {summary.name}: there are {plan.trials}.")
    return [
        TrialKey(summary.id, each, trial)
        for each in plan.arms
        for trial in range(1, plan.trials + 1)
        if arm in {None, each} and number in {None, trial}
    ]


def unmatched(scenarios: Sequence[ScenarioSummary], globs: Sequence[str], option: str) -> list[str]:
    """A sentence for each of the option's globs that matches no scenario, with close names."""
    found = []
    for glob in globs:
        if not any(_matches(scenario, glob) for scenario in scenarios):
            near = get_close_matches(glob, [printable(scenario.name) for scenario in scenarios], 3)
            hint = f"Did you mean {', '.join(near)}?" if near else "`sweep benchmarks show` lists them."
            found.append(f"{option} {glob!r} matches no scenario. {hint}")
    return found


def _matches(scenario: ScenarioSummary, glob: str) -> bool:
    """True if a glob matches the scenario's name or id. A name with brackets in it matches itself, too."""
    return any(glob == name or fnmatchcase(name, glob) for name in (scenario.name, scenario.id))
