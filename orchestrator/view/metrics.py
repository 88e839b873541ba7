"""The numbers of sweeps for monitoring, from the fold: one list of them, for Prometheus and for OpenTelemetry."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final, Literal

from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.records import Outcome
from orchestrator.core.stages import Stage
from orchestrator.rundir.recorded import RecordedSweep, SweepState
from orchestrator.view.report import SOLVED

#: The content type of `prometheus_text`.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number of a sweep, for each of its `samples`, which are values by labels.

    A counter only grows, but for trials that run again; its name ends with `_total` in Prometheus. `unit` is as UCUM
    has it, empty for what is counted.
    """

    name: str
    help: str
    kind: Literal["gauge", "counter"] = "gauge"
    unit: str = ""
    samples: Sequence[tuple[Mapping[str, str], float]] = field(default_factory=list)


def metrics_of(ledger: Ledger, plan: Plan, *, now: float) -> Iterator[Metric]:
    """Yield the metrics of a sweep. `now` is by the journal's clock."""
    finished, in_flight = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    failures, flags = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    begun, retries, solved = Counter[str](), Counter[str](), Counter[str]()
    scores: dict[str, list[float]] = {arm: [] for arm in plan.arms}
    for key, trial in ledger.trials.items():
        if key not in plan:
            continue
        retries[key.arm] += max(0, trial.attempts - 1)
        begun[key.arm] += trial.outcome is not None
        if trial.outcome is not None:
            finished[key.arm, trial.outcome] += 1
            flags.update((key.arm, flag) for flag in trial.flags)
        elif (attempt := ledger.under_way(key)) is not None and attempt.stage is not None:
            in_flight[key.arm, attempt.stage] += 1
            begun[key.arm] += 1
        if trial.failure is not None:
            failures[key.arm, trial.failure] += 1
        if trial.score is not None:
            scores[key.arm].append(trial.score)
            solved[key.arm] += trial.score >= SOLVED

    planned = len(plan) // max(1, len(plan.arms))

    def by_arm(values: Mapping[str, float]) -> list[tuple[Mapping[str, str], float]]:
        return [({"arm": arm}, values[arm]) for arm in plan.arms if arm in values]

    def by(label: str, values: Mapping[tuple[str, str], float]) -> list[tuple[Mapping[str, str], float]]:
        return [({"arm": arm, label: word}, value) for (arm, word), value in sorted(values.items())]

    outcomes = {(arm, str(outcome)): finished[arm, outcome] for arm in plan.arms for outcome in Outcome}
    stages = {(arm, str(stage)): in_flight[arm, stage] for arm in plan.arms for stage in Stage}
    means = {arm: sum(each) / len(each) for arm, each in scores.items() if each}
    yield Metric(name="trials_planned", help="Trials of the plan.", samples=by_arm(dict.fromkeys(plan.arms, planned)))
    yield Metric(
        name="trials_queued",
        help="Trials that wait for their turn, or to be tried again.",
        samples=by_arm({arm: planned - begun[arm] for arm in plan.arms}),
    )
    yield Metric(name="trials_in_flight", help="Trials under way, by stage.", samples=by("stage", stages))
    yield Metric(name="trials_finished", help="Trials with a result, by outcome.", samples=by("outcome", outcomes))
    yield Metric(
        name="trials_solved", help="Trials with the whole score.", samples=by_arm({a: solved[a] for a in plan.arms})
    )
    yield Metric(name="score_mean", help="Mean of the scores so far.", samples=by_arm(means))
    yield Metric(name="failures", help="Trials that failed, by class.", samples=by("class", failures))
    yield Metric(name="flags", help="Results with a flag.", samples=by("flag", flags))
    yield Metric(
        name="retries",
        help="Attempts after a trial's first.",
        kind="counter",
        samples=by_arm({arm: retries[arm] for arm in plan.arms}),
    )
    yield Metric(
        name="cost_usd",
        help="What agents report to have spent.",
        kind="counter",
        unit="USD",
        samples=by_arm(ledger.costs),
    )
    yield Metric(
        name="tokens", help="Input and output tokens that agents report.", kind="counter", samples=by_arm(ledger.tokens)
    )
    yield Metric(name="devboxes_up", help="Devboxes between boot and release.", samples=[({}, ledger.up)])
    yield Metric(
        name="devbox_seconds",
        help="Time of devboxes between boot and release.",
        kind="counter",
        unit="s",
        samples=[({}, ledger.devbox_seconds(now))],
    )


def metrics_of_recorded(sweep: RecordedSweep, now: float) -> list[Metric]:
    """List the metrics of a sweep with its state, all with its name as the label `sweep`.

    `now` is by the journal's clock; a sweep that no process works on is as it was at its last event.
    """
    state = sweep.state
    about = Metric(name="state", help="1 for the state that the sweep is in.", samples=[({"state": state}, 1)])
    found = metrics_of(sweep.ledger, sweep.plan, now=now if state is SweepState.RUNNING else sweep.ledger.at)
    return [
        replace(each, samples=[({"sweep": sweep.name, **labels}, value) for labels, value in each.samples])
        for each in (about, *found)
    ]


def prometheus_text(metrics: Iterable[Metric]) -> str:
    """Write metrics, of any number of sweeps, in the text format of Prometheus."""
    families: dict[str, list[Metric]] = {}
    for metric in metrics:
        families.setdefault(metric.name, []).append(metric)
    return "".join(line for family in families.values() for line in _lines(family))


def _lines(family: Sequence[Metric]) -> Iterator[str]:
    first = family[0]
    name = f"sweep_{first.name}{'_total' if first.kind == 'counter' else ''}"
    yield f"# HELP {name} {first.help}\n# TYPE {name} {first.kind}\n"
    for labels, value in chain.from_iterable(metric.samples for metric in family):
        words = ",".join(f'{label}="{_escaped(word)}"' for label, word in labels.items())
        yield f"{name}{{{words}}} {value:.12g}\n"


def _escaped(word: str) -> str:
    return word.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n").encode("utf-8", "replace").decode()
