"""The repair of a damaged journal: every line that is an event and can follow those before it is kept.

The rest is set aside as it is, never deleted: a later version may be able to read it. Results that only results.jsonl
still has, because the journal was cut, are taken from there.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from msgspec import structs

from orchestrator.core import errors, events
from orchestrator.core.ledger import Ledger
from orchestrator.rundir import checkpoint, files, journal, manifest, results_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """The lines that were set aside in `file`, their bytes, and the trials that they name.

    `file` is None if there were none. `restored` counts the results that were taken from results.jsonl.
    """

    lines: int
    bytes: int
    file: Path | None
    trials: tuple[str, ...]
    restored: int


def repair(folder: Path) -> Repaired | None:
    """Rewrite the journal without its damaged lines; None if there are none. A checkpoint is deleted, not read.

    Raises UsageError if the folder has no journal, another process has it, or a later version wrote it; JournalError if
    the disk refuses, which leaves the journal as it was.
    """
    path = folder / files.JOURNAL
    if not path.is_file() and not (folder / files.RESULTS).is_file():
        raise errors.UsageError(f"{folder} has no {files.JOURNAL}: name a sweep's folder, such as runs/my-sweep.")
    try:
        with files.locked(folder, manifest.lock_of(folder)):
            path.touch()
            ledger = Ledger()
            damaged = dict(_damaged(path, ledger))
            unknown = results_file.unknown_results(folder, ledger)
            restored = [events.to_line(structs.replace(event, at=round(journal.now(), 3))) for event in unknown]
            (folder / checkpoint.CHECKPOINT).unlink(missing_ok=True)
            if not damaged and not restored:
                return None
            aside = folder / f"journal.damaged-{time.strftime('%Y%m%d-%H%M%S')}" if damaged else None
            if aside is not None:
                files.write_atomically(aside, damaged.values())
            with path.open("rb") as file:
                kept = (line for number, line in enumerate(file) if number not in damaged)
                files.write_atomically(path, chain(kept, restored))
    except OSError as error:
        raise errors.JournalError(f"{folder} cannot be repaired: {error}. The journal is as it was.") from error

    named = [line.partition(b'"trial":"')[2].partition(b'"') for line in damaged.values()]
    trials = [name.decode(errors="replace") for name, closed, _ in named if closed]
    return Repaired(
        lines=len(damaged),
        bytes=sum(map(len, damaged.values())),
        file=aside,
        trials=tuple(dict.fromkeys(trials)),
        restored=len(restored),
    )


def _damaged(path: Path, ledger: Ledger) -> Iterator[tuple[int, bytes]]:
    """Yield each line that is no event, or cannot follow those before it, with its number from 0. Folds the others.

    Raises UsageError for a later version's journal.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file):
            try:
                if line.endswith(b"\n"):
                    event = events.from_line(line)
                    journal.check_version(event, path)
                    if isinstance(event, events.TrialFinished):
                        results_file.result_line(event)
                    ledger.apply(event)
                    continue
            except (errors.JournalError, errors.InternalError):
                pass
            yield number, line
