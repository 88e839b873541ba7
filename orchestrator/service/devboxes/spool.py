"""The output of commands on disk: one file per stream, written as it comes, read at any time, never held in memory.

Each write opens the file anew, in a thread: a service with hundreds of commands holds no descriptor for any of them,
and while one write is under way the next bytes gather in the pipe, so that a flood is written in large pieces.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import structlog

STREAMS: Final = ("stdout", "stderr")
MAX_STREAM: Final = 1 << 30
MAX_TAIL: Final = 1 << 20
PIECE: Final = 1 << 16
_LONGEST_CHARACTER: Final = 4


def spool_path(output: Path, devbox_id: str, execution_id: str, stream: str) -> Path:
    return output / devbox_id / f"{execution_id}.{stream}"


class Spool:
    """The writer of one stream. After `limit` bytes the rest is dropped, and the file says so."""

    def __init__(self, path: Path, *, on_change: Callable[[], None], limit: int = MAX_STREAM) -> None:
        self._path = path
        self._on_change = on_change
        self._room = limit
        self._limit = limit
        #: Some of the output was dropped.
        self.is_cut = False

    async def write(self, chunk: bytes) -> None:
        """Keep a piece of output; what the disk refuses is dropped, so that the command is not held up."""
        if self.is_cut:
            return
        kept = chunk[: self._room]
        self._room -= len(kept)
        if len(kept) < len(chunk):
            self.is_cut = True
            kept += f"\n[the output beyond {self._limit} bytes was not kept]\n".encode()
        try:
            await anyio.to_thread.run_sync(append, self._path, kept)
        except OSError as error:
            self.is_cut = True
            structlog.get_logger().warning("output.unwritable", path=str(self._path), error=str(error))
        self._on_change()


def make_private(folder: Path) -> None:
    """Make the folder of a devbox's output, and that of all of them, for their owner only."""
    for each in (folder.parent, folder):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)


def append(path: Path, data: bytes) -> None:
    """Add to a file in the folder of a devbox's output, both for their owner only. Blocking."""
    make_private(path.parent)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as file:
        file.write(data)


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a stream as text, and whether anything came before it."""

    text: str
    is_truncated: bool


def read_tail(path: Path, *, lines: int | None = None, limit: int = MAX_TAIL) -> Tail:
    """The last lines (all, if None) of a file, at most `limit` bytes; a missing file is empty. Blocking."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return Tail("", is_truncated=False)
    with file:
        start = file.seek(0, 2)
        data = b""
        while start > 0 and len(data) < limit and (lines is None or data.count(b"\n", 0, -1) < lines):
            step = min(start, PIECE, limit - len(data))
            start -= step
            file.seek(start)
            data = file.read(step) + data
    kept = data if lines is None else _last_lines(data, lines)
    is_truncated = start > 0 or len(kept) < len(data)
    if start > 0 and len(kept) == len(data):
        kept = kept[_opening_fragment(kept) :]
    return Tail(kept.decode(errors="replace"), is_truncated)


def _last_lines(data: bytes, lines: int) -> bytes:
    if lines <= 0:
        return b""
    cut = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        cut = data.rfind(b"\n", 0, cut)
        if cut < 0:
            return data
    return data[cut + 1 :]


def _opening_fragment(data: bytes) -> int:
    """How many bytes at the start belong to a character that began before it."""
    count = 0
    while count < min(len(data), _LONGEST_CHARACTER - 1) and data[count] & 0xC0 == 0x80:
        count += 1
    return count


def read_piece(path: Path, offset: int) -> bytes:
    """Up to PIECE bytes from `offset` on; a missing file is empty. Blocking."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(PIECE)
    except FileNotFoundError:
        return b""


def whole_characters(data: bytes) -> int:
    """How many bytes of `data` can be decoded now, because no later byte can belong to them.

    Only a character that is begun and not finished at the very end is held back; bytes that are no UTF-8 are not.
    """
    for back in range(1, min(_LONGEST_CHARACTER, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if length > back else len(data)
    return len(data)
