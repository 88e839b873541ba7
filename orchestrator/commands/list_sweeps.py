"""`sweep list`: the sweeps of a runs folder, newest first."""

from pathlib import Path

from orchestrator.core.errors import SweepError
from orchestrator.core.printable import printable
from orchestrator.rundir.files import JOURNAL, MANIFEST
from orchestrator.rundir.journal import now
from orchestrator.rundir.recorded import RecordedSweep, reading
from orchestrator.rundir.sweep_index import run_folders
from orchestrator.view.console import say
from orchestrator.view.formats import Format
from orchestrator.view.overview import SweepRow, sweep_rows, sweeps_table
from orchestrator.view.tables import print_listing


def run(runs: Path, *, output: Format) -> None:
    """List the sweeps, a row for each arm. Of one that cannot be read the reason is told, as of what is left of one."""
    rows, problems = list[SweepRow](), list[str]()
    for folder in run_folders(runs):
        try:
            with reading(folder):
                rows += sweep_rows(RecordedSweep(folder), now())
        except SweepError as error:
            rows.append(SweepRow(name=folder.name, folder=str(folder)))
            problems.append(error.message)
    if rows or output.is_for_programs:
        print_listing(sweeps_table(rows), output)
    else:
        say(f"There is no sweep in {runs}.")
    folders = sorted(path.parent for path in runs.glob(f"*/{JOURNAL}"))
    if nameless := [printable(folder.name) for folder in folders if not (folder / MANIFEST).exists()]:
        problems.append(f"Not listed, because {MANIFEST} is missing: {', '.join(nameless)}.")
    for problem in problems:
        say(problem, to_stderr=True)
