"""What the pages of all sweeps and of one sweep show: records, and HTML by part, so that parts can change live."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import fmean
from typing import Any, Final

from markupsafe import Markup

from orchestrator.core.ledger import Attempt, Trial
from orchestrator.core.printable import counted, printable, shortened
from orchestrator.core.records import Outcome, TrialKey
from orchestrator.rundir.recorded import RecordedSweep, SweepState
from orchestrator.rundir.sweep_index import as_typed
from orchestrator.view.in_flight import attempts_in_flight, end_of_log, in_flight
from orchestrator.view.overview import SweepSummary, budgets, lost_lines, summary_of
from orchestrator.view.report import SOLVED, ArmSummary, Report, duration, number, report
from orchestrator.view.tables import plain
from orchestrator.view.web import charts
from orchestrator.view.web.templates import environment

#: Characters of a failure's message beside a cell.
NOTE_WIDTH: Final = 160
#: The parts of a sweep's page that change live, each a macro of `_sweep.html`.
PARTS: Final = ("head", "arms", "in_flight", "findings", "plots", "timeline")
#: Trials in flight that are listed.
IN_FLIGHT: Final = 24
#: Letters for rows in which arms differ, and in which an arm solves a scenario sometimes.
DIFFERING, FLAKY = "d", "f"


class CellKind(IntEnum):
    """How a trial is shown; the scripts and styles know these by name."""

    WAITING = 0
    RUNNING = 1
    SOLVED = 2
    PARTIAL = 3
    UNSOLVED = 4
    FAILED = 5


#: Kind, text, note, and the words that it is found by: failure class and flags.
Cell = tuple[int, str, str, tuple[str, ...]]
#: Solved and scored trials as text, mean as text, mean, and letters.
GridRow = tuple[str, str, float, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Every trial of a sweep, made for a page: cells by scenario, arm and trial, in this order."""

    arms: Sequence[str]
    trials: int
    ids: Sequence[str]
    names: Sequence[str]
    rows: Sequence[GridRow]
    cells: Sequence[Cell]

    def as_dict(self) -> dict[str, Any]:
        return {
            "arms": [{"id": arm, "name": printable(arm)} for arm in self.arms],
            "trials": self.trials,
            "kinds": [kind.name.lower() for kind in CellKind],
            "ids": self.ids,
            "names": self.names,
            "rows": self.rows,
            "cells": self.cells,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """A sweep in a few numbers. `why` says why it ended early, `left` are the seconds it may still take, if it runs."""

    about: SweepSummary
    arms: Sequence[ArmSummary]
    why: str
    scored: int
    failed: int
    running: int
    left: float | None

    @property
    def waiting(self) -> int:
        return self.about.trials - self.about.done - self.running


def totals_of(sweep: RecordedSweep, summary: Report, now: float) -> Totals:
    """Sum up a sweep; `now` is in seconds since 1970."""
    about, ledger, plan = summary_of(sweep, now), sweep.ledger, sweep.plan
    is_running = about.state is SweepState.RUNNING
    return Totals(
        about=about,
        arms=summary.arms,
        why=(ledger.ended or "").partition(": ")[2],
        scored=sum(arm.scored for arm in summary.arms),
        failed=sum(arm.failed for arm in summary.arms),
        running=sum(1 for _ in attempts_in_flight(ledger, ledger.held)) if is_running else 0,
        left=about.seconds / about.done * (len(plan) - about.done) if is_running and about.done else None,
    )


def read_totals(sweep: RecordedSweep, now: float) -> Totals:
    """Sum up a sweep for the list of sweeps."""
    return totals_of(sweep, report(sweep.ledger, sweep.plan, sweep.folder), now)


def sweep_parts(sweep: RecordedSweep, now: float) -> Mapping[str, Markup]:
    """Render the parts of a sweep's page, by the ids of their elements."""
    summary = report(sweep.ledger, sweep.plan, sweep.folder)
    return render_parts(sweep_values(sweep, summary, now))


def render_parts(values: Mapping[str, Any]) -> Mapping[str, Markup]:
    """Render the parts of these values."""
    macros: Any = environment().get_template("_sweep.html").module
    return {part: getattr(macros, part)(values) for part in PARTS}


def sweep_values(sweep: RecordedSweep, summary: Report, now: float, link: str = "trial?") -> dict[str, Any]:
    """The values of the parts; links to trials begin with `link`."""
    ledger, plan = sweep.ledger, sweep.plan
    shown = {key: row for key, row in sweep.results.items() if key in plan}
    latest = list(shown.items())[-charts.MAX_BARS :]
    spans = [charts.span_of(key, row) for key, row in latest if row["stages"]]
    at_work = []
    if sweep.state is SweepState.RUNNING:
        under_way = [each for each in attempts_in_flight(ledger, ledger.held) if each[0] in plan]
        spans += [charts.span_under_way(key, attempt, now) for key, attempt in under_way]
        found = (
            in_flight(key, attempt, plan, sweep.folder, now=now, end_of=end_of_log)
            for key, attempt in under_way[:IN_FLIGHT]
        )
        at_work = sorted(found, key=lambda each: -each.idle)
    return {
        "totals": totals_of(sweep, summary, now),
        "summary": summary,
        "lost": [plain(line) for line in lost_lines(sweep)],
        "names": sweep.names,
        "at_work": at_work,
        "budgets": budgets(sweep.manifest.config, ledger, now),
        "typed": as_typed(sweep.folder),
        "over_time": charts.score_over_time(shown, plan.arms),
        "against_cost": charts.score_against_cost(summary.arms),
        "timeline": charts.timeline(spans, sweep.manifest.config.get("devboxes", 1), left_out=len(shown) - len(latest)),
        "link": link,
    }


def grid_of(sweep: RecordedSweep) -> Grid:
    """Make the grid of a sweep."""
    plan, ledger = sweep.plan, sweep.ledger
    is_running = sweep.state is SweepState.RUNNING
    cells: list[Cell] = []
    rows = []
    for scenario in plan.scenarios:
        scores: list[list[float]] = []
        for arm in plan.arms:
            its = []
            for trial_number in range(1, plan.trials + 1):
                key = TrialKey(scenario.id, arm, trial_number)
                trial = ledger.trials.get(key)
                cells.append(_cell(trial, ledger.under_way(key) if is_running and trial else None))
                if trial is not None and trial.score is not None:
                    its.append(trial.score)
            scores.append(its)
        rows.append(_row(scores))
    return Grid(
        arms=plan.arms,
        trials=plan.trials,
        ids=[scenario.id for scenario in plan.scenarios],
        names=[printable(scenario.name) for scenario in plan.scenarios],
        rows=rows,
        cells=cells,
    )


def _row(scores: Sequence[Sequence[float]]) -> GridRow:
    flat = [score for its in scores for score in its]
    means = {round(fmean(its), 9) for its in scores if its}
    letters = (DIFFERING if len(means) > 1 else "") + (
        FLAKY if any(len({score >= SOLVED for score in its}) > 1 for its in scores) else ""
    )
    mean = fmean(flat) if flat else None
    solved = sum(score >= SOLVED for score in flat)
    return f"{solved}/{len(flat)}", number(mean), -1.0 if mean is None else mean, letters


def _cell(trial: Trial | None, attempt: Attempt | None) -> Cell:
    if trial is None:
        return CellKind.WAITING, "", "", ()
    if trial.outcome is None:
        if attempt is None or attempt.stage is None:
            return CellKind.WAITING, "", f"waiting, after {counted(trial.attempts, 'attempt')}", ()
        return CellKind.RUNNING, "…", attempt.stage.doing, ()
    words = tuple(printable(word) for word in (*filter(None, [trial.failure]), *trial.flags))
    notes = [duration(trial.seconds), *trial.flags]
    if trial.attempts > 1:
        notes.append(counted(trial.attempts, "attempt"))
    if trial.outcome is Outcome.FAILED or trial.score is None:
        why = shortened(f"{trial.failure}: {trial.message}", NOTE_WIDTH)
        return CellKind.FAILED, "failed", ", ".join([why, *notes]), words
    kind = CellKind.SOLVED if trial.score >= SOLVED else CellKind.PARTIAL if trial.score > 0 else CellKind.UNSOLVED
    return kind, number(trial.score), ", ".join(notes), words
