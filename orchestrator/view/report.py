"""The finished picture: one line an arm, the same numbers as a table for people and as JSON for programs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.journal import RESULTS
from orchestrator.ledger import Ledger, Trial
from orchestrator.model import Outcome
from orchestrator.plan import Plan
from orchestrator.printable import printable

_Z: Final = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """What an arm reached: `mean` over scored trials, with its 95 % interval where two scenarios or more have scores.

    `floor` is the mean if every failed trial counted 0: between the two lies the truth about a night with failures.
    `seconds` is the time its last attempts took, summed.
    """

    arm: str
    planned: int
    scored: int
    failed: int
    flagged: int
    mean: float | None
    low: float | None
    high: float | None
    floor: float | None
    seconds: float


def summarise(ledger: Ledger, plan: Plan) -> list[ArmSummary]:
    """One summary an arm, in the plan's order."""
    trials: dict[str, dict[str, list[Trial]]] = {arm: {} for arm in plan.arms}
    for key in plan:
        trial = ledger.trials.get(key)
        if trial is not None and trial.outcome is not None:
            trials[key.arm].setdefault(key.scenario, []).append(trial)
    planned = len(plan) // max(1, len(plan.arms))
    return [_summarise_arm(arm, planned, by_scenario) for arm, by_scenario in trials.items()]


def _summarise_arm(arm: str, planned: int, by_scenario: Mapping[str, list[Trial]]) -> ArmSummary:
    finished = [trial for trials in by_scenario.values() for trial in trials]
    scores = [[trial.score for trial in trials if trial.score is not None] for trials in by_scenario.values()]
    flat = [score for values in scores for score in values]
    failed = sum(trial.outcome is Outcome.FAILED for trial in finished)
    low, high = interval([values for values in scores if values])
    return ArmSummary(
        arm=arm,
        planned=planned,
        scored=len(flat),
        failed=failed,
        flagged=sum(bool(trial.flags) for trial in finished),
        mean=fmean(flat) if flat else None,
        low=low,
        high=high,
        floor=sum(flat) / (len(flat) + failed) if flat or failed else None,
        seconds=round(sum(trial.seconds for trial in finished), 1),
    )


def interval(scores: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """The 95 % confidence interval of the mean of all scores, given as one sequence a scenario, within [0, 1].

    Repeated trials of one scenario are not independent, so scenarios are what is counted: Student's t, with the
    variance of a ratio of sums over clusters (Cochran, Sampling Techniques), for failed trials leave some scenarios
    with fewer scores than others. None for fewer than two scenarios.
    """
    clusters = len(scores)
    if clusters < 2:
        return None, None
    count = sum(map(len, scores))
    mean = sum(map(sum, scores)) / count
    spread = sum((sum(values) - mean * len(values)) ** 2 for values in scores)
    half = _t_quantile(clusters - 1) * sqrt(clusters / (clusters - 1) * spread) / count
    return max(0.0, mean - half), min(1.0, mean + half)


def _t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun, 26.7.5; exact forms for 1 and 2 degrees)."""
    if freedom == 1:
        return 12.7062
    if freedom == 2:
        return 4.3027
    z, n = _Z, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def as_json(summaries: Iterable[ArmSummary]) -> list[dict[str, Any]]:
    """The summaries as plain objects."""
    return [asdict(summary) for summary in summaries]


def as_table(summaries: Iterable[ArmSummary], folder: Path) -> RenderableType:
    """The table, and where the files are."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm", overflow="fold")
    for name in ("scored", "failed", "mean", "95 % interval", "if failed were 0", "agent time"):
        table.add_column(name, justify="right")
    for each in summaries:
        table.add_row(
            Text(printable(each.arm)),
            f"{each.scored}/{each.planned}",
            str(each.failed),
            number(each.mean),
            f"{number(each.low)} - {number(each.high)}" if each.low is not None else "-",
            number(each.floor),
            duration(each.seconds),
        )
    files = (f"Results: {folder / RESULTS}", f"Logs:    {folder / 'trials'}")
    return Group(table, *(Text(printable(line)) for line in files))


def number(value: float | None) -> str:
    """A score for people."""
    return "-" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 7:05, 3:20:11."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
