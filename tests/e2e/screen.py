"""The real command at a terminal of its own, whose other side is a test's."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len

from .conftest import PATIENCE

if TYPE_CHECKING:
    from .conftest import Desk


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """A command at a terminal of its own, and the other side of that."""

    process: "subprocess.Popen[bytes]"
    fd: int

    def read(self, seconds: float = 0.0) -> bytes:
        """Read the text that is on it, and any that comes within so many seconds of the last."""
        found = b""
        with suppress(OSError):
            while select.select([self.fd], [], [], seconds)[0] and (piece := os.read(self.fd, 65536)):
                found += piece
        return found

    def stop(self) -> None:
        """Stop the output, as Ctrl-S does."""
        os.write(self.fd, b"\x13")

    def go_on(self) -> None:
        """Let the output go on, as Ctrl-Q does."""
        os.write(self.fd, b"\x11")

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """The terminal goes away."""
        os.close(self.fd)

    def end(self, seconds: float = PATIENCE) -> int:
        """Read on to the end; returns the exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.1)
        return self.process.wait(1)


@contextmanager
def at_a_terminal(desk: "Desk", *words: str, term: str = "xterm") -> Iterator[Screen]:
    """A command typed there; it is ended with the test."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    more = {"TERM": term, **(desk.service.environment if desk.service else {})}
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=desk.folder,
        env=desk.environment(more),
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            yield Screen(process=process, fd=ours)
        finally:
            process.kill()
            with suppress(OSError):  # it hung up
                os.close(ours)


class Glass:
    """What a person sees on a terminal that lays out again what is on it when its width changes, as most do."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        #: The number of times that all of it was drawn anew.
        self.made_anew = 0
        self._lines = [""]
        self._at = 0

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._lines]

    def resize(self, rows: int, columns: int) -> None:
        pieces = [
            line[at : at + columns] for line in self._lines for at in range(0, max(1, len(line.rstrip())), columns)
        ]
        self.rows, self.columns = rows, columns
        self._lines = pieces[-rows:]
        self._at = len(self._lines) - 1

    def feed(self, data: bytes) -> None:
        """Obey what our output has: line ends, a cursor that goes up and home, lines and screens that are erased."""
        for text, code in _PIECE.findall(data.decode(errors="replace")):
            if text in {"\n", "\r\n"}:
                self._go_down()
            elif text and text != "\r":
                self._write(text)
            elif code == "[1A":
                self._at = max(0, self._at - 1)
            elif code == "[2K":
                self._lines[self._at] = ""
            elif code == "[H":
                self._at = 0
                self.made_anew += 1
            elif code == "[J":
                self._lines = [*self._lines[: self._at], ""]

    def _write(self, text: str) -> None:
        for each in text:
            if cell_len(self._lines[self._at]) + cell_len(each) > self.columns:
                self._go_down()
            self._lines[self._at] += each

    def _go_down(self) -> None:
        self._at += 1
        if self._at == len(self._lines):
            self._lines.append("")
        if len(self._lines) > self.rows:
            del self._lines[0]
            self._at -= 1


#: Text, a line's end, or a sequence that a terminal obeys.
_PIECE = re.compile(r"(\r?\n|\r|[^\x1b\r\n]+)|\x1b(\[\??[0-9;]*[A-Za-z])")
