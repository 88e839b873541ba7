"""Events from the lines of a journal, and lines from events."""

from collections.abc import Iterator
from pathlib import Path

import orjson

from orchestrator import events
from orchestrator.errors import JournalError, UsageError
from orchestrator.events import Event, SweepOpened, TrialFinished


def read_events(path: Path, offset: int = 0, lines: int = 0) -> Iterator[tuple[Event, int]]:
    """The events of a journal behind an offset, each with the offset behind its line, up to the last whole line.

    `lines` is how many there are before the offset. Raises JournalError naming line and byte offset for a line that is
    not an event, UsageError for a journal of a version whose events mean something else.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for number, line in enumerate(file, lines + 1):
            if not line.endswith(b"\n"):
                return
            try:
                event = events.from_dict(orjson.loads(line))
            except (orjson.JSONDecodeError, JournalError) as error:
                if not file.read(1) and not line.strip(b"\0\n"):
                    return  # a tail of zeros is what some file systems leave of a torn write
                raise JournalError(
                    f"{path}, line {number}, byte {offset}: this line is damaged ({error}). "
                    "Nothing was changed; `sweep repair` keeps what can be read."
                ) from None
            if isinstance(event, SweepOpened) and event.schema > events.SCHEMA:
                raise UsageError(f"{path} was written by sweep {event.version}; this one is older. Upgrade it.")
            offset += len(line)
            yield event, offset


def to_line(event: Event) -> bytes:
    """The line of an event in the journal."""
    return orjson.dumps(events.to_dict(event), option=orjson.OPT_APPEND_NEWLINE)


def to_result(event: TrialFinished) -> bytes:
    """The line of results.jsonl that the end of a trial gives."""
    return orjson.dumps(event.result, option=orjson.OPT_APPEND_NEWLINE)
