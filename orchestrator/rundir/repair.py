"""What can be kept of a damaged journal: every line that is an event and can follow those before it.

The rest is set aside as it is, never thrown away: a later version may know what to do with it. Results that only
results.jsonl has still, because the journal was cut, are taken from there.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from msgspec import structs

from orchestrator.core.errors import InternalError, JournalError, UsageError
from orchestrator.core.events import SCHEMA, Event, SweepOpened, TrialFinished, from_line, to_line
from orchestrator.core.ledger import Ledger
from orchestrator.rundir.checkpoint import CHECKPOINT
from orchestrator.rundir.clock import now
from orchestrator.rundir.files import JOURNAL, RESULTS, lock_of, locked, write_atomically
from orchestrator.rundir.results import result_line, unknown_results


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """What was set aside: how many lines and bytes, in which file, and the trials that these lines named.

    `file` is None if there was nothing. `restored` counts the results that were taken from results.jsonl.
    """

    lines: int
    bytes: int
    file: Path | None
    trials: tuple[str, ...]
    restored: int


def repair(folder: Path) -> Lost | None:
    """Rewrite the journal without its damaged lines; None if there are none. A checkpoint goes: it is not asked.

    Raises UsageError if the folder has no journal, another process has it, or a later version wrote it; JournalError if
    the disk refuses: the journal is as it was then.
    """
    path = folder / JOURNAL
    if not path.is_file() and not (folder / RESULTS).is_file():
        raise UsageError(f"{folder} has no {JOURNAL}: name a sweep's folder, such as runs/my-sweep.")
    try:
        with locked(folder, lock_of(folder)):
            path.touch()
            return _repair(folder, path)
    except OSError as error:
        raise JournalError(f"{folder} cannot be repaired: {error}. The journal is as it was.") from error


def _repair(folder: Path, path: Path) -> Lost | None:
    ledger = Ledger()
    damaged = dict(_damaged(path, ledger))
    restored = [to_line(structs.replace(event, at=round(now(), 3))) for event in unknown_results(folder, ledger)]
    (folder / CHECKPOINT).unlink(missing_ok=True)
    aside = folder / f"journal.damaged-{time.strftime('%Y%m%d-%H%M%S')}" if damaged else None
    if aside is not None:
        write_atomically(aside, damaged.values())
    if damaged or restored:
        with path.open("rb") as file:
            kept = (line for number, line in enumerate(file) if number not in damaged)
            write_atomically(path, chain(kept, restored))
    if not damaged and not restored:
        return None
    return Lost(
        lines=len(damaged),
        bytes=sum(map(len, damaged.values())),
        file=aside,
        trials=tuple(dict.fromkeys(_trials(damaged.values()))),
        restored=len(restored),
    )


def _damaged(path: Path, ledger: Ledger) -> Iterator[tuple[int, bytes]]:
    """The lines that are no event that can follow those before it, each with its number, from 0; folds the others."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            try:
                if line.endswith(b"\n"):
                    _follow(ledger, from_line(line), path)
                    continue
            except (JournalError, InternalError):
                pass
            yield number, line


def _follow(ledger: Ledger, event: Event, path: Path) -> None:
    """Take in an event. Raises JournalError or InternalError for one that cannot be kept."""
    match event:
        case SweepOpened() if event.schema > SCHEMA:
            raise UsageError(f"{path} was written by sweep {event.version}; this one is older. Upgrade it.")
        case TrialFinished():
            result_line(event)
    ledger.apply(event)


def _trials(damaged: Iterable[bytes]) -> Iterator[str]:
    """The trials that damaged lines name, as far as they can be read."""
    for line in damaged:
        _, found, rest = line.partition(b'"trial":"')
        name, closed, _ = rest.partition(b'"')
        if found and closed:
            yield name.decode(errors="replace")
