"""Several steps of one scenario: what each begins with, what judges it, and what becomes of its reward.

A client of the published protocol knows one problem statement and one scoring. It sees the first step's; ours reads the
key `steps` of a scenario's view, and works on until its run is scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, inf
from typing import Any

from orchestrator.core.protocol import RewardStrategy
from orchestrator.service.definitions.scoring_plan import ScoringPlan
from orchestrator.service.sandbox.prepared import StepStart


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioStep:
    """One step of a scenario.

    It is judged by the `contract`, of no function where it has no tests, within `scorer_timeout` seconds. `min_reward`
    are rewards by name without which no step follows.
    """

    name: str
    contract: Mapping[str, Any]
    plan: ScoringPlan
    scorer_timeout: float
    start: StepStart
    min_reward: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The value of the key `_steps` of a scenario's document: all of its steps, none where it is one task."""

    steps: tuple[ScenarioStep, ...] = ()
    strategy: RewardStrategy = RewardStrategy.MEAN


def is_enough(rewards: Mapping[str, float], least: Mapping[str, float]) -> bool:
    """Tell whether the rewards of a step let the next one begin; one that is missing is too low."""
    return all(rewards.get(name, -inf) >= value for name, value in least.items())


def rewards_of_all(strategy: RewardStrategy, rewards: Sequence[Mapping[str, float] | None]) -> Mapping[str, float]:
    """Return the rewards of the whole from those of each step; None is a step without tests.

    As Harbor has it: the mean leaves out steps without a verdict, and a name that is missing counts 0.
    """
    if strategy is RewardStrategy.FINAL:
        return (rewards[-1] if rewards else None) or {}
    judged = [each for each in rewards if each is not None]
    names = dict.fromkeys(name for each in judged for name in each)
    return {name: fsum(each.get(name, 0.0) for each in judged) / len(judged) for name in names}
