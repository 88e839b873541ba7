"""The agent's output, on disk while it runs: without secrets, and bounded.

Of a flood the beginning and the end are kept, for the one says what the agent set out to do and the other how it ended;
a line between them says how much is missing. The middle is cut out of the file in place, now and then: a reader sees
it grow, and a process that resumes needs only the length that was journaled.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from orchestrator.core.printable import shortened
from orchestrator.engine.redact import Redactor
from orchestrator.rundir.files import persist, write_all

#: The size of a log; half of it is for the beginning.
MAX_BYTES: Final = 64 << 20
#: The part of a log in which the reason of a crash is looked for.
_BEGINNING_BYTES: Final = 64 << 10
_NOTED: Final = re.compile(rb"\n\[sweep: ([\d,]+) bytes are left out here\]\n")


class AgentLog:
    """The log at `path`, whose first `length` bytes are kept; the rest is cut off.

    Use `open`, `write` for each piece, `finish` at the end. `length` is its present length; `is_settled` is false while
    the last bytes are held back because they may be the beginning of a secret.
    """

    def __init__(self, path: Path, redactor: Redactor, *, length: int = 0, limit: int = MAX_BYTES) -> None:
        self.path = path
        self.length = length
        #: The number of times that its middle was cut out since it was opened.
        self.cuts = 0
        self._head = limit // 2
        self._limit = limit
        self._left_out = 0
        self._masked = redactor.stream()
        self._file: FileIO | None = None

    @property
    def is_settled(self) -> bool:
        return not self._masked.is_holding

    @property
    def is_truncated(self) -> bool:
        return self._left_out > 0

    @property
    def is_closed(self) -> bool:
        return self._file is None

    async def __aenter__(self) -> Self:
        await persist(self.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Cut the file to `length`, or empty it if it is shorter. Raises OSError; it may be tried again."""
        file = self._file = FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+")
        if file.seek(0, os.SEEK_END) < self.length:
            self.length = 0
        file.truncate(self.length)
        file.seek(self._head)
        noted = _NOTED.match(file.read(100))
        self._left_out = int(noted[1].replace(b",", b"")) if noted else 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    async def write(self, data: bytes) -> None:
        """Add output of the agent, as soon as the disk allows."""
        await self._add(self._masked.feed(data))

    async def finish(self) -> None:
        """Add the bytes that were held back."""
        await self._add(self._masked.finish())

    def write_nowait(self, data: bytes) -> None:
        """Write like `write`, without waiting. Raises OSError if the disk refuses; that part is lost."""
        for piece in self._pieces(self._masked.feed(data)):
            self._put(piece)

    def finish_nowait(self) -> None:
        """Finish like `finish`, without waiting. Raises OSError as `write_nowait` does."""
        self._put(self._masked.finish())

    async def _add(self, data: bytes) -> None:
        for piece in self._pieces(data):
            await persist(partial(self._put, piece))

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        size = self._limit // 16
        return (data[at : at + size] for at in range(0, len(data), size))

    def _put(self, piece: bytes) -> None:
        """Write a piece at the end; after a failure all of it may be written again."""
        assert self._file is not None, "the log is not open"
        if self.length + len(piece) > self._limit:
            # Cut out the middle. The end is copied to a place that does not overlap it, so this may be repeated.
            kept = self._limit * 3 // 16
            before = len(_note(self._left_out)) if self._left_out else 0
            left_out = self._left_out + self.length - kept - self._head - before
            self._file.seek(self.length - kept)
            end = bytearray()
            while len(end) < kept and (read := self._file.read(kept - len(end))):
                end += read
            self._file.seek(self._head)
            write_all(self._file, _note(left_out) + end)
            self._file.truncate()
            self.length, self._left_out = self._file.tell(), left_out
            self.cuts += 1
        self._file.seek(self.length)
        write_all(self._file, piece)
        self.length += len(piece)


def is_cut(path: Path) -> bool:
    """Tell if the middle of a log is left out. Raises OSError."""
    with path.open("rb") as file:
        file.seek(MAX_BYTES // 2)
        return _NOTED.match(file.read(100)) is not None


def telling_line(path: Path) -> str:
    """The line of a log that explains a crash best, for a message; empty if there is none.

    That is the first line, or the last one if the log begins with a Python traceback.
    """
    text = ""
    with suppress(OSError), path.open("rb") as file:
        text = file.read(_BEGINNING_BYTES).decode(errors="replace")
    lines = [line for line in map(str.strip, text.splitlines()) if line] or [""]
    return shortened(lines[-1 if lines[0].startswith("Traceback (most recent call last)") else 0], 200)


def _note(left_out: int) -> bytes:
    return f"\n[sweep: {left_out:015,d} bytes are left out here]\n".encode()
