"""The growing file the records come from."""

from collections.abc import Iterator
from pathlib import Path


def read_lines(path: Path, offset: int) -> Iterator[tuple[str, int, int]]:
    """The lines from `offset` on, each with where it starts and where the next one does."""
    with path.open(encoding="utf-8", newline="\n") as source:
        source.seek(offset)
        for line in source:
            start, offset = offset, offset + len(line)
            yield line, start, offset
