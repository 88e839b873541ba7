"""The agent's output, on disk while it runs: without secrets, and never more than fits.

Of a flood the beginning and the end are kept, for the one says what the agent set out to do and the other how it ended;
a line between them says how much is missing. The middle is cut out of the one file there is, in place and now and then:
whoever follows it sees it grow, and a process that goes on where another died needs only the length that was noted.
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
from orchestrator.rundir.files import persist

#: Bytes of a log; half of them are of its beginning.
LIMIT: Final = 64 << 20
#: Bytes in which what tells most of a crash is looked for.
_BEGINNING: Final = 64 << 10
_NOTED: Final = re.compile(rb"\n\[sweep: ([\d,]+) bytes are left out here\]\n")


class AgentLog:
    """The log at `path`, from byte `length` on: what comes after that is written anew.

    Use `open`, `write` as it comes, `finish` when no more does. `length` is what is in it; `is_settled` is false while
    the last bytes wait to be told from a secret.
    """

    def __init__(self, path: Path, redactor: Redactor, *, length: int = 0, limit: int = LIMIT) -> None:
        self.path = path
        self.length = length
        #: How often something was cut out of it since it was opened.
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
        """Cut it to its length, or empty it if less of it is there. Raises OSError; it may be tried again."""
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
        """Add what was printed, as soon as the disk allows."""
        await self._add(self._masked.feed(data))

    async def finish(self) -> None:
        """Add what was held back."""
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
        """Write it at the end, all of it again from the same place after a failure."""
        assert self._file is not None, "the log is not open"
        if self.length + len(piece) > self._limit:
            self._cut(self._file)
        _write_at(self._file, self.length, piece)
        self.length += len(piece)

    def _cut(self, file: FileIO) -> None:
        """Leave out the middle. What is kept of the end is copied to where nothing of it lies: it may be repeated."""
        kept = self._limit * 3 // 16
        before = len(_note(self._left_out)) if self._left_out else 0
        left_out = self._left_out + self.length - kept - self._head - before
        note = _note(left_out)
        file.seek(self.length - kept)
        end = bytearray()
        while len(end) < kept and (read := file.read(kept - len(end))):
            end += read
        _write_at(file, self._head, note + end)
        file.truncate()
        self.length, self._left_out = file.tell(), left_out
        self.cuts += 1


def is_cut(path: Path) -> bool:
    """Tell whether the middle of a log is left out. Raises OSError."""
    with path.open("rb") as file:
        file.seek(LIMIT // 2)
        return _NOTED.match(file.read(100)) is not None


def telling_line(path: Path) -> str:
    """The line of a log that tells most of why its agent crashed, for a message; empty where there is none.

    That is the first one; the last one where it begins with a traceback of Python's.
    """
    text = ""
    with suppress(OSError), path.open("rb") as file:
        text = file.read(_BEGINNING).decode(errors="replace")
    lines = [line for line in map(str.strip, text.splitlines()) if line] or [""]
    return shortened(lines[-1 if lines[0].startswith("Traceback (most recent call last)") else 0], 200)


def _note(left_out: int) -> bytes:
    return f"\n[sweep: {left_out:015,d} bytes are left out here]\n".encode()


def _write_at(file: FileIO, position: int, data: bytes) -> None:
    file.seek(position)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
