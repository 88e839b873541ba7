"""What can be kept of a damaged journal: every line that is an event and can follow those before it.

The rest is set aside as it is, never thrown away: a later version may know what to do with it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from orchestrator import events
from orchestrator.errors import InternalError, JournalError, UsageError
from orchestrator.journal import JOURNAL, locked, write_atomically
from orchestrator.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """What was set aside: how many lines and bytes, in which file, and the trials that these lines named."""

    lines: int
    bytes: int
    file: Path
    trials: tuple[str, ...]


def repair(folder: Path) -> Lost | None:
    """Rewrite the journal without its damaged lines; None if there are none.

    Raises UsageError if the folder has no journal or another process has it.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise UsageError(f"{folder} has no {JOURNAL}: name a sweep's folder, such as runs/my-sweep.")
    with locked(folder):
        kept, damaged = bytearray(), []
        for line, is_good in _judged(path):
            if is_good:
                kept += line
            else:
                damaged.append(line)
        if not damaged:
            return None
        aside = folder / f"journal.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        write_atomically(aside, b"".join(damaged))
        write_atomically(path, bytes(kept))
    return Lost(
        lines=len(damaged), bytes=sum(map(len, damaged)), file=aside, trials=tuple(dict.fromkeys(_trials(damaged)))
    )


def _judged(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Each line, and whether it is an event that can follow those kept so far."""
    ledger = Ledger()
    with path.open("rb") as file:
        for line in file:
            try:
                ledger.apply(events.from_dict(orjson.loads(line)))
            except (orjson.JSONDecodeError, JournalError, InternalError):
                yield line, False
            else:
                yield line, line.endswith(b"\n")


def _trials(damaged: list[bytes]) -> Iterator[str]:
    """The trials that damaged lines name, as far as they can be read."""
    for line in damaged:
        _, found, rest = line.partition(b'"trial":"')
        name, closed, _ = rest.partition(b'"')
        if found and closed:
            yield name.decode(errors="replace")
