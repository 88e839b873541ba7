"""`sweep status`: how far a sweep is and what each trial in flight does, read from its folder alone."""

from dataclasses import asdict
from pathlib import Path

from orchestrator.rundir.journal import now
from orchestrator.rundir.recorded import RecordedSweep, SweepState
from orchestrator.view import overview
from orchestrator.view.console import print_record, say
from orchestrator.view.formats import Format
from orchestrator.view.in_flight import LogEnd, attempts_in_flight, end_of_log, in_flight
from orchestrator.view.report import report
from orchestrator.view.tables import Look, print_lines, print_listing


def run(folder: Path, *, output: Format) -> None:
    """Show a sweep that runs, stopped, or was copied from another machine.

    Where no process works on it, times are those at its last event, and the times of its files say nothing.
    """
    sweep = RecordedSweep(folder)
    ledger, plan, process = sweep.ledger, sweep.plan, sweep.holder
    is_running = sweep.state is SweepState.RUNNING
    at = now() if is_running else ledger.at

    def end_of(path: Path) -> LogEnd:
        end = end_of_log(path)
        return end if is_running else LogEnd(end.line)

    trials = [
        in_flight(key, attempt, plan, folder, now=at, end_of=end_of)
        for key, attempt in attempts_in_flight(ledger, (key for key in ledger.held if key in plan))
    ]
    table = overview.in_flight_table(trials, plan)
    if output.tabulate is not None:
        print_listing(table, output)
        return
    about, arms = overview.summary_of(sweep, at), report(ledger, plan, folder).arms
    budgets = overview.budgets(sweep.manifest.config, ledger, at)
    if output.encode is not None:
        more = {"process": process, "arms": arms, "budgets": budgets, "devboxes": sweep.manifest.config["devboxes"]}
        print_record({"event": "sweep"} | asdict(about) | more, output)
        for row in table.rows:
            print_record({"event": "in_flight", **row}, output)
        return
    print_lines([(overview.headline(about), Look.HEAD), *overview.lost_lines(sweep)])
    if process is not None:
        say(f"Worked on by {process.name}.")
    elif about.ended and sweep.state is not SweepState.FINISHED:
        say(f"Its last process ended: {about.ended}.")
    if is_running and (notice := overview.pause_notice(ledger, folder)) is not None:
        say(notice)
    if budgets:
        say(f"Budgets: {' · '.join(budgets)}")
    print_listing(overview.arms_table(arms), output)
    if trials:
        left = "In flight" if is_running else "Left in flight by its last process"
        print_lines(["", (f"{left}: {len(trials)}", Look.HEAD)])
        print_listing(table, output)
