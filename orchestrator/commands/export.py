"""`sweep export`: writes results in the forms that other tools read."""

import sys
from collections.abc import Iterator
from pathlib import Path

import orjson

from orchestrator.core.errors import JournalError, UsageError, WorldError
from orchestrator.core.printable import counted
from orchestrator.rundir.files import RESULTS, write_atomically
from orchestrator.view.console import say
from orchestrator.view.exports import EXPORTS, Row


def run(folder: Path, form: str, *, arm: str | None, trial: int | None, target: Path | None) -> None:
    """Write the results of a run folder that are there by now to a file, or to standard output.

    Raises UsageError, JournalError for a file that is damaged, WorldError and BrokenPipeError.
    """
    rows = list(_rows(folder / RESULTS))
    arms = sorted({row["arm"] for row in rows})
    if arm is not None and arm not in arms:
        raise UsageError(f"--arm {arm}: {folder.name} has results of {', '.join(arms) or 'none'}.")
    chosen = [row for row in rows if arm in {None, row["arm"]} and trial in {None, row["trial"]}]
    if not chosen:
        raise UsageError(f"{folder.name} has no result{'' if trial is None else f' of trial {trial}'} yet.")
    content = b"".join(EXPORTS[form](chosen, folder))
    try:
        if target is None:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            return
        write_atomically(target, content)
    except BrokenPipeError:  # who reads has seen enough
        raise
    except OSError as error:
        raise WorldError(f"{target or 'standard output'} cannot be written: {error.strerror}.") from None
    say(f"{target}: {counted(len(chosen), 'result')}.", to_stderr=True)


def _rows(file: Path) -> Iterator[Row]:
    try:
        with file.open("rb") as opened:
            for number, line in enumerate(opened, 1):
                try:
                    yield orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise JournalError(f"{file}: line {number}: {error}: `sweep repair` makes it anew.") from None
    except FileNotFoundError:
        return
