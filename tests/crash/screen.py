"""The reading end of a command's standard output: a pipe, or a terminal. It reads into a file, until it stops.

A reader that has stopped leaves no room for a single byte: what had room in a pipe is filled by us.
"""

import fcntl
import os
import pty
import select
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

#: The least that a pipe can hold.
_ROOM: Final = 4096
_LOOK_EVERY: Final = 0.1


class Screen:
    """Give `entry` to a command as its standard output. `with` it, or close it."""

    def __init__(self, log: Path, *, is_terminal: bool) -> None:
        self._end, self.entry = pty.openpty() if is_terminal else os.pipe()
        if not is_terminal:
            fcntl.fcntl(self._end, fcntl.F_SETPIPE_SZ, _ROOM)
        self._log = log
        self._is_reading = threading.Event()
        self._is_reading.set()
        self.is_gone = False
        self._one_at_a_time = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="screen", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """A path by which another process can open the entry."""
        return Path(os.ttyname(self.entry) if os.isatty(self.entry) else f"/proc/{os.getpid()}/fd/{self.entry}")

    def stop(self) -> None:
        """Read nothing more, and let nothing more be written."""
        with self._one_at_a_time:
            self._is_reading.clear()
        # Opened anew, because whether writing blocks would else be shared with whoever else writes.
        entry = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        with suppress(BlockingIOError):
            while True:
                os.write(entry, b"\n")
        os.close(entry)

    def go_on(self) -> None:
        self._is_reading.set()

    def go_away(self) -> None:
        """Be no reader any more: writing fails from now on."""
        self.is_gone = True
        self._is_reading.set()
        self._thread.join()
        if self.entry >= 0:
            os.close(self.entry)
            self.entry = -1

    close = go_away

    def _read(self) -> None:
        with self._log.open("ab") as log:
            while not self.is_gone:
                self._is_reading.wait()
                is_more = select.select([self._end], [], [], _LOOK_EVERY)[0]
                with self._one_at_a_time, suppress(OSError):  # a terminal that nobody has open
                    if is_more and self._is_reading.is_set():
                        log.write(os.read(self._end, 1 << 16))
                        log.flush()
        os.close(self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
