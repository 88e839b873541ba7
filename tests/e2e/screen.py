"""The real command at a terminal of its own, whose other side is a test's."""

import fcntl
import os
import pty
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
