"""One run of the importer."""

from pathlib import Path

from importer.checkpoint import Checkpoint
from importer.records import RecordError, parse_record
from importer.sink import Sink
from importer.source import read_lines


def run(source: Path, target: Path, state: Path, limit: int | None = None) -> tuple[int, str | None]:
    """Imports what is new; returns how many records that was, and what is wrong with the line it stopped at."""
    checkpoint = Checkpoint(state)
    offset = checkpoint.load(source)
    imported = 0
    with Sink(target) as sink:
        for line, start, end in read_lines(source, offset):
            if limit is not None and imported >= limit:
                break
            offset = end
            if not line.strip():
                continue
            try:
                record = parse_record(line)
            except RecordError as error:
                if not line.endswith("\n"):
                    continue  # the producer is still writing it
                return imported, f"{source}: byte {start}: {error}"
            sink.write(record)
            imported += 1
    checkpoint.save(offset)
    return imported, None
