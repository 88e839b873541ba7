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
    imported, problem = 0, None
    with Sink(target) as sink:
        for line, start, end in read_lines(source, offset):
            if limit is not None and imported >= limit:
                break
            if line.strip():
                try:
                    record = parse_record(line)
                except RecordError as error:
                    problem = f"{source}: byte {start}: {error}"
                    break
                sink.write(record)
                imported += 1
            offset = end
    checkpoint.save(offset)  # only now: what was written is in the target once the sink was closed
    return imported, problem
