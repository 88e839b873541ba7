"""`sweep export`: writes results in the forms that other tools read."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from orchestrator.common.plugins import PlugInGroup, plug_ins
from orchestrator.core.errors import SweepError, UsageError, WorldError
from orchestrator.core.printable import counted, printable
from orchestrator.rundir.files import write_folder, write_where_told
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.rundir.results_file import Row, read_results
from orchestrator.view.console import say
from orchestrator.view.export_folders import FOLDERS
from orchestrator.view.exports import EXPORTS
from orchestrator.view.overview import lost_lines
from orchestrator.view.tables import plain


def run(folder: Path, form: str, *, arm: str | None, trial: int | None, target: Path | None) -> None:
    """Write the results of a run folder that are there by now to a file or folder, or to standard output.

    `form` is one of ours, or a plug-in's. Raises UsageError, JournalError for a file that is damaged, WorldError and
    BrokenPipeError.
    """
    if form in FOLDERS and target is None:
        raise UsageError(f"--to {form} writes a folder: give its place with -o DIR.")
    if form == "parquet" and target is None and sys.stdout.isatty():
        raise UsageError("--to parquet writes what a terminal cannot show: give a file with -o FILE.")
    rows = read_results(folder)
    with suppress(SweepError):  # results are there also where the journal cannot be read
        for line in lost_lines(RecordedSweep(folder)):
            say(plain(line), to_stderr=True)
    arms = sorted({row["arm"] for row in rows})
    if arm is not None and arm not in arms:
        raise UsageError(f"--arm {arm}: {folder.name} has results of {', '.join(map(printable, arms)) or 'none'}.")
    chosen = [row for row in rows if arm in {None, row["arm"]} and trial in {None, row["trial"]}]
    if not chosen:
        raise UsageError(f"{folder.name} has no result{'' if trial is None else f' of trial {trial}'} yet.")
    try:
        if target is not None and form in FOLDERS:
            write_folder(target, lambda draft: FOLDERS[form](chosen, folder, draft))
        elif target is not None:
            write_where_told(target, _written(form, chosen, folder))
        else:
            sys.stdout.buffer.write(_written(form, chosen, folder))
            sys.stdout.buffer.flush()
            return
    except BrokenPipeError:  # who reads has seen enough
        raise
    except FileExistsError:
        raise UsageError(f"{target} is there already: give a new folder with -o DIR.") from None
    except OSError as error:
        raise WorldError(f"{target or 'standard output'} cannot be written: {error.strerror or error}.") from None
    say(f"{target}: {counted(len(chosen), 'result')}.", to_stderr=True)


def _written(form: str, rows: Sequence[Row], folder: Path) -> bytes:
    """Write rows in a form that is a file. Raises UsageError for an unknown form, and for a plug-in that is broken."""
    if form in EXPORTS:
        return b"".join(EXPORTS[form](rows, folder))
    plugged = plug_ins(PlugInGroup.EXPORTERS)
    if form not in plugged:
        known = sorted({*EXPORTS, *FOLDERS, *plugged})
        near = get_close_matches(form, known, 3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(known)}."
        raise UsageError(f"--to {form}: there is no such form. {hint}")
    export = plugged[form].load()
    with plugged[form].blamed():
        return b"".join(export(rows, folder))
