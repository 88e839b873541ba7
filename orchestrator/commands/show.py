"""`sweep show`: what a sweep came to, or one of its trials."""

from dataclasses import asdict
from pathlib import Path
from typing import Final

from orchestrator.core.errors import UsageError
from orchestrator.core.plan import trials_of
from orchestrator.rundir.journal import now
from orchestrator.rundir.recorded import RecordedSweep, SweepState
from orchestrator.rundir.sweep_index import trial_as_typed
from orchestrator.view import overview
from orchestrator.view.console import Page, print_record, say
from orchestrator.view.formats import Format
from orchestrator.view.report import as_record, as_table, report
from orchestrator.view.tables import Listing, Look, print_lines, print_listing
from orchestrator.view.trial_page import TrialPage

#: Columns of the summary without a terminal to measure.
_WIDTH: Final = 200


def run(folder: Path, scenario: str | None, *, arm: str | None, trial: int | None, output: Format) -> None:
    """Show a sweep, or the trials of a `scenario`: a table of them, or the only one. Raises UsageError."""
    sweep = RecordedSweep(folder)
    if scenario is None and not (arm is None and trial is None):
        raise UsageError("--arm and --trial choose trials of a SCENARIO: name one.")
    if scenario is None:
        _show_sweep(sweep, output)
        return
    keys = trials_of(sweep.plan, scenario, arm=arm, number=trial)
    if len(keys) > 1 or output.tabulate is not None:
        print_listing(overview.trials_table(sweep.ledger, sweep.plan, keys), output)
        if not output.is_for_programs:
            say(f"One of them: sweep show {trial_as_typed(folder, keys[0], sweep.plan)}")
        return
    page = TrialPage(sweep, keys[0])
    if output.is_for_programs:
        print_record(page.record(), output)
    else:
        print_lines(page.lines())


def _show_sweep(sweep: RecordedSweep, output: Format) -> None:
    ledger, plan, folder = sweep.ledger, sweep.plan, sweep.folder
    about, whole = overview.summary_of(sweep, now()), report(ledger, plan, folder)
    cells = list(overview.cells(ledger, plan))
    if output.encode is not None:
        noted = {"slowest": overview.slowest(ledger, plan), "costliest": overview.costliest(ledger, plan)}
        trials = {
            name: [overview.trial_record(key, trial, plan) for key, trial in found] for name, found in noted.items()
        }
        orders = {"orders": [asdict(each) for each in ledger.orders]}
        print_record({"event": "sweep"} | asdict(about) | as_record(whole) | trials | orders, output)
        for cell in cells:
            print_record({"event": "scenario"} | asdict(cell), output)
    elif output.has_words:
        print_lines([f"**{overview.headline(about)}**", ""])
        for table in (overview.arms_table(whole.arms), overview.matrix(cells, plan), overview.findings_table(whole)):
            if table.rows:
                print_listing(table, output)
    elif output.tabulate is not None:
        print_listing(Listing(rows=[asdict(cell) for cell in cells], columns=[]), output)
    else:
        print_listing(overview.matrix(cells, plan), output)
        print_lines(["", (overview.headline(about), Look.HEAD), *overview.lost_lines(sweep)])
        Page(_WIDTH).print(as_table(whole))
        print_lines(overview.remarkable(ledger, plan, cells))
        print_lines(overview.orders_lines(ledger))
        is_running = about.state is SweepState.RUNNING
        following = overview.next_commands(ledger, plan, folder, after="show", is_running=is_running)
        print_lines([f"Next: {', '.join(following)}"])
