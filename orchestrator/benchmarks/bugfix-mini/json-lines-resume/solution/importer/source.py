"""The growing file the records come from."""

from collections.abc import Iterator
from pathlib import Path


def read_lines(path: Path, offset: int) -> Iterator[tuple[bytes, int, int]]:
    """The finished lines from `offset` on, each with where it starts and where the next one does, in bytes.

    A last line without its newline is not finished: the producer's buffer ends anywhere, even inside a character.
    """
    with path.open("rb") as source:
        source.seek(offset)
        for line in source:
            if not line.endswith(b"\n"):
                return
            start, offset = offset, offset + len(line)
            yield line, start, offset
