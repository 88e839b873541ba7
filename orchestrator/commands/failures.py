"""`sweep failures`: every trial that failed, grouped by its reason, with the command that shows it."""

from pathlib import Path

from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.view.console import say
from orchestrator.view.formats import Format
from orchestrator.view.overview import failure_groups, failures_table
from orchestrator.view.report import report
from orchestrator.view.tables import print_lines, print_listing


def run(folder: Path, *, output: Format) -> None:
    """List the failures of a sweep: groups for people, a row for each trial otherwise."""
    sweep = RecordedSweep(folder)
    failures = failures_table(sweep.ledger, sweep.plan, folder)
    if output.is_for_programs:
        print_listing(failures, output)
        return
    if not failures.rows:
        say(f"No trial of {sweep.name} failed.")
        return
    print_lines([*failure_groups(report(sweep.ledger, sweep.plan, folder)), ""])
    print_listing(failures, output)
