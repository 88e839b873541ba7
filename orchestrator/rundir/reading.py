"""The events of a journal, line by line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestrator.core import events
from orchestrator.core.errors import JournalError, SweepError, UsageError
from orchestrator.core.events import Event, SweepOpened
from orchestrator.core.ledger import Ledger

_FIX: Final = "Nothing was changed; `sweep repair` keeps what can be read."


def read_events(path: Path, offset: int = 0, lines: int = 0) -> Iterator[tuple[Event, int]]:
    """The events of a journal behind an offset, each with the offset behind its line, up to the last whole line.

    `lines` is how many there are before the offset. Raises JournalError naming line and byte offset for a line that is
    not an event, UsageError for a journal of a version whose events mean something else.
    """
    with path.open("rb", buffering=1 << 16) as file:
        file.seek(offset)
        for number, line in enumerate(file, lines + 1):
            if not line.endswith(b"\n"):
                return
            try:
                event = events.from_line(line)
            except JournalError as error:
                if not file.read(1) and not line.strip(b"\0\n"):
                    return  # a tail of zeros is what some file systems leave of a torn write
                raise JournalError(
                    f"{path}, line {number}, byte {offset}: this line is damaged ({error}). {_FIX}"
                ) from None
            if type(event) is SweepOpened and event.schema > events.SCHEMA:
                raise UsageError(f"{path} was written by sweep {event.version}; this one is older. Upgrade it.")
            offset += len(line)
            yield event, offset


def fold_events(path: Path, ledger: Ledger, offset: int = 0, lines: int = 0) -> Iterator[tuple[Event, int]]:
    """As `read_events`, with each event applied to a ledger. Raises JournalError for one that cannot follow, too."""
    for event, end in read_events(path, offset, lines):
        try:
            ledger.apply(event)
        except SweepError as error:
            raise JournalError(f"{path}, byte {offset}: {error} {_FIX}") from error
        offset = end
        yield event, end
