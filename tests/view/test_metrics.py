"""The metrics of sweeps, as a reader of Prometheus's text format takes them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import pytest

from orchestrator.core.events import StageEntered, StageFinished
from orchestrator.core.ledger import Ledger
from orchestrator.core.stages import Stage
from orchestrator.rundir.recorded import SweepState
from orchestrator.view.metrics import metrics_of_recorded, prometheus_text
from tests.docs.pages import PAGES

from .conftest import again, failed, make_plan, scored

if TYPE_CHECKING:
    from orchestrator.core.plan import Plan
    from orchestrator.rundir.recorded import RecordedSweep

LABEL: Final = r'[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE: Final = re.compile(rf"([a-zA-Z_:][\w:]*)\{{({LABEL}(?:,{LABEL})*)\}} (-?\d[\d.e+-]*)")


class Recorded:
    """A sweep whose ledger the test has made."""

    def __init__(self, name: str, ledger: Ledger, plan: "Plan", state: SweepState) -> None:
        self.name, self.ledger, self.plan, self.state, self.folder = name, ledger, plan, state, Path("runs", name)


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Read the text; every line must be what the format allows, and every family come once, with its type first."""
    family, seen = "", set[str]()
    for line in text.splitlines():
        if match := re.fullmatch(r"# HELP (\w+) [^\n]+", line):
            family = match[1]
            assert family not in seen
            seen.add(family)
        elif match := re.fullmatch(r"# TYPE (\w+) (gauge|counter)", line):
            assert match[1] == family
            assert (match[2] == "counter") == family.endswith("_total")
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] == family
            labels = dict(each.split("=", 1) for each in re.findall(LABEL, match[2]))
            yield family, {name: word[1:-1] for name, word in labels.items()}, float(match[3])


def test_every_number_of_a_sweep_is_there_with_its_labels() -> None:
    ledger, plan = Ledger(), make_plan(*"pqrst", arms=("a", 'b"\\\n'))
    for event in (
        scored("s0/a/1", 1.0, flags=["no_patch"], usage={"cost_usd": 0.5, "input_tokens": 7}),
        scored("s1/a/1", 0.5),
        failed("s2/a/1"),
        *again("s3/a/1", "gone"),
        StageEntered(trial="s4/a/1", attempt=1, stage=Stage.START),
        StageFinished(trial="s4/a/1", attempt=1, stage=Stage.START, seconds=1.0),
        StageEntered(trial="s4/a/1", attempt=1, stage=Stage.BOOT),
        StageFinished(trial="s4/a/1", attempt=1, stage=Stage.BOOT, seconds=1.0, at=100.0),
    ):
        ledger.apply(event)
    ledger.apply(StageEntered(trial="s3/a/1", attempt=2, stage=Stage.START))
    sweeps = [
        Recorded("night", ledger, plan, SweepState.RUNNING),
        Recorded("other", Ledger(), make_plan("p"), SweepState.DIED),
    ]
    metrics = [each for sweep in sweeps for each in metrics_of_recorded(cast("RecordedSweep", sweep), 160.0)]
    found = list(samples(prometheus_text(metrics)))

    def value(name: str, sweep: str = "night", **labels: str) -> float | None:
        wanted = {"sweep": sweep, **labels}
        return next((number for family, of, number in found if family == f"sweep_{name}" and of == wanted), None)

    assert value("state", state="running") == value("state", sweep="other", state="died") == 1
    assert value("trials_planned", arm="a") == 5
    assert value("trials_queued", arm="a") == 0
    assert value("trials_queued", arm=r"b\"\\\n") == 5
    assert value("trials_in_flight", arm="a", stage="start") == 1
    assert value("trials_in_flight", arm="a", stage="boot") == 1
    assert value("trials_finished", arm="a", outcome="scored") == 2
    assert value("trials_finished", arm="a", outcome="failed") == 1
    assert value("trials_solved", arm="a") == 1
    assert value("score_mean", arm="a") == pytest.approx(0.75)
    assert value("score_mean", arm=r"b\"\\\n") is None
    assert value("failures", arm="a", **{"class": "DevboxLost"}) == 1
    assert value("flags", arm="a", flag="no_patch") == 1
    assert value("retries_total", arm="a") == 1
    assert value("cost_usd_total", arm="a") == 0.5
    assert value("tokens_total", arm="a") == 7
    assert value("devboxes_up") == 1
    assert value("devbox_seconds_total") == 60
    assert value("trials_planned", sweep="other", arm="a") == 1
    listed = set(re.findall(r"`(sweep_\w+)`", PAGES["monitoring"].partition("## Prometheus")[2]))
    assert listed == {family for family, _, _ in found}
