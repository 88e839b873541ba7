"""Standard output and error, written by threads, so that nothing else ever waits for a reader.

A terminal may take nothing for a night (Ctrl-S, an ssh that hangs), a pipe may be full or without a reader, a disk may
be full, a shell may stop a process that writes from the background. That may delay the display, never a sweep.

Of output that is not taken, the newest is kept: the latest picture, and as many lines as there is room for. The number
of lines left out is printed in their place. A descriptor whose reader is gone is not written to again.

A picture is erased line by line. When a terminal changes its size, it may lay out again what is on it, or may not, so
that nobody knows how many lines the picture has there: then the whole screen is made anew.
"""

import errno
import os
import re
import select
import signal
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import TextIOBase
from queue import SimpleQueue
from threading import Event, RLock, Thread
from typing import Final

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.core.errors import WorldError
from orchestrator.core.printable import coloured, printable
from orchestrator.view.formats import LINES, Format, Record

#: Size of waiting lines; older ones are left out.
ROOM_BYTES: Final = 1 << 20
#: Written at a time; between two of them it is seen that a reader still reads.
_PIECE_BYTES: Final = 4096
#: Time between two tries at a descriptor that takes nothing now.
_PAUSE_S: Final = 0.2
#: At the end: the time within which a reader must take something, and the whole time it gets.
STALL_S: Final = 3.0
LAST_S: Final = 10.0
#: Time to restore a terminal when the process leaves at once.
_LEAVING_S: Final = 0.5
#: Errors that may pass.
_PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
#: Columns of a table of rows without a terminal to measure.
_WHOLE_NAMES: Final = 1000
_HIDE_CURSOR: Final = b"\x1b[?25l"
_SHOW_CURSOR: Final = b"\x1b[?25h"
_ERASE_LINE: Final = b"\x1b[2K"
_ERASE_SCREEN: Final = b"\x1b[H\x1b[J"
_UP: Final = b"\x1b[1A"
#: The newest lines above the picture, which are printed again when the screen is made anew.
_KEPT_LINES: Final = 200
#: The codes of a line that take no place.
_CODES: Final = re.compile(r"\x1b\[[0-9;:]*m")
_NO_SIZE: Final = os.terminal_size((0, 0))


class Output:
    """A descriptor and the thread that writes to it. No call waits except `settle` and `leave`, which are bounded.

    `left_out` makes the line that stands in place of so many missing lines; `room` is in bytes.
    """

    def __init__(self, fd: int, left_out: Callable[[int], str], *, room: int = ROOM_BYTES) -> None:
        self.fd = fd
        #: Nothing reads it any more.
        self.is_gone = False
        self._is_terminal = os.isatty(fd)
        self._left_out_line = left_out
        self._room = room
        #: Reentrant: a finalizer may print while this thread holds it.
        self._lock = RLock()
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        #: The number of missing lines, and of those that the line being written reports.
        self._left_out = self._reported = 0
        #: The picture to show, and the picture on the screen.
        self._wanted: tuple[bytes, ...] = ()
        self._drawn: tuple[bytes, ...] = ()
        #: The size of the terminal for which each of them was made.
        self._wanted_size = self._drawn_size = self._size()
        self._above: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self._is_torn = self._is_leaving = False
        self._moved_at = time.monotonic()
        self._idle = Event()
        self._idle.set()
        #: Its `put` may be called from a signal handler.
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._is_rung = False
        Thread(target=self._run, name=f"output {fd}", daemon=True).start()

    def write(self, line: bytes) -> None:
        """Add one or more lines above the picture."""
        with self._lock:
            if self.is_gone:
                return
            self._lines.append(line)
            self._waiting += len(line)
            while self._waiting > self._room and len(self._lines) > 1:
                oldest = self._lines.popleft()
                self._waiting -= len(oldest)
                self._left_out += max(1, oldest.count(b"\n"))
            self._ring()

    def show(self, picture: Sequence[str]) -> None:
        """Replace the picture at the end of the screen. Its lines must not be wider than the screen."""
        with self._lock:
            self._wanted = tuple(line.encode(errors="backslashreplace") for line in picture)
            self._wanted_size = self._size()
            self._ring()

    def settle(self, stall: float = STALL_S) -> bool:
        """Wait until all is written, as long as the reader takes something every `stall` seconds; returns success."""
        began = time.monotonic()
        while not self._idle.wait(0.02):
            now = time.monotonic()
            if now - max(began, self._moved_at) > stall or now - began > LAST_S:
                return False
        return True

    @property
    def is_filling(self) -> bool:
        """True if so much waits that lines would soon be left out."""
        return self._waiting > self._room // 2

    def leave(self) -> None:
        """Restore the terminal now. May be called from any thread or signal handler."""
        self._is_leaving = True
        self._bell.put(None)
        end = time.monotonic() + _LEAVING_S
        while self._is_leaving and time.monotonic() < end:
            time.sleep(0.01)

    def _ring(self) -> None:
        self._idle.clear()
        if not self._is_rung:
            self._is_rung = True
            self._bell.put(None)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # it would stop the whole process
        while True:
            self._bell.get()
            while data := self._next():
                self._deliver(data)
            if self._is_leaving:
                self._deliver(_SHOW_CURSOR + b"\n" if self._drawn else b"")
                self._is_leaving = False

    def _next(self) -> bytes:
        """Return the bytes to write now; none if all is written.

        They are some of the waiting lines, after the number of lines left out before them, and the picture.
        """
        lines, size = [], 0
        with self._lock:
            if self._lines:
                lines += [b"\n"] if self._is_torn else []
                lines += [self._left_out_line(self._left_out).encode()] if self._left_out else []
                self._reported, self._left_out, self._is_torn = self._left_out, 0, False
            while self._lines and size < 16 * _PIECE_BYTES:
                lines.append(self._lines.popleft())
                size += len(lines[-1])
            self._waiting -= size
            window = self._size()
            # A picture that was made for another size does not fit; the next one comes soon.
            wanted = self._wanted if window == self._wanted_size else ()
            redraw = bool(lines) or wanted != self._drawn
            if not redraw or self._is_leaving:
                self._is_rung = False
                if not redraw:
                    self._idle.set()
                return b""
            before, self._drawn = self._drawn, wanted
            is_resized, self._drawn_size = bool(before) and window != self._drawn_size, window
        erased = (b"\r" + _ERASE_LINE + (_UP + _ERASE_LINE) * (len(before) - 1)) if before else b""
        if is_resized:
            erased = _ERASE_SCREEN + b"".join(self._newest(window))
        self._above.extend(b"".join(lines).splitlines(keepends=True))
        cursor = _HIDE_CURSOR if self._drawn and not before else _SHOW_CURSOR if before and not self._drawn else b""
        return b"".join([erased, *lines, cursor, b"\n".join(self._drawn)])

    def _newest(self, window: os.terminal_size) -> Sequence[bytes]:
        """The newest lines that a screen of this size has room for, above the picture."""
        room, found = window.lines - len(self._wanted), list[bytes]()
        for line in reversed(self._above):
            cells = cell_len(_CODES.sub("", line.decode(errors="replace")).rstrip("\n"))
            room -= max(1, -(-cells // max(1, window.columns)))
            if room < 0:
                break
            found.append(line)
        return found[::-1]

    def _size(self) -> os.terminal_size:
        """The size of the terminal, in columns and lines; nothing elsewhere."""
        try:
            return os.get_terminal_size(self.fd) if self._is_terminal else _NO_SIZE
        except OSError:  # it is gone
            return _NO_SIZE

    def _deliver(self, data: bytes) -> None:
        """Write the data. What a full disk does not take is left out; without a reader nothing is written any more."""
        rest = data
        while rest and not self.is_gone:
            try:
                while self._is_terminal and _is_unwelcome(self.fd):
                    time.sleep(_PAUSE_S)
                written = os.write(self.fd, rest[:_PIECE_BYTES])
            except BlockingIOError:  # another process that shares it has made it so
                wait_writable(self.fd)
            except OSError as error:
                with self._lock:
                    if error.errno in _PASSING:
                        is_begun = len(rest) < len(data)
                        self._left_out += rest.count(b"\n") + (0 if is_begun else max(0, self._reported - 1))
                        self._is_torn = is_begun and data[-len(rest) - 1 : -len(rest)] != b"\n"
                        self._moved_at, rest = time.monotonic(), b""
                    else:
                        self.is_gone = True
                        self._lines.clear()
                        self._waiting = self._left_out = 0
            else:
                rest = rest[written:]
                self._moved_at = time.monotonic()


def _is_unwelcome(fd: int) -> bool:
    """Return True in the background of a terminal that takes no output from there (stty tostop)."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp() and bool(termios.tcgetattr(fd)[3] & termios.TOSTOP)
    except (OSError, termios.error):  # not the terminal of our session, or it is gone
        return False


def wait_writable(fd: int) -> None:
    """Wait a moment for a non-blocking descriptor that takes nothing now."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll(_PAUSE_S * 1000)


class ThreadedStream(TextIOBase):
    """Replaces `sys.stdout` and `sys.stderr` while threads write; it never waits and never fails."""

    def __init__(self, output: Output, encoding: str) -> None:
        self.output = output
        self._encoding = encoding
        self._lock = RLock()
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def write(self, text: str, /) -> int:
        with self._lock:
            whole, newline, self._begun = (self._begun + text).rpartition("\n")
        self._send(whole + newline)
        return len(text)

    def flush(self) -> None:
        """Write an unfinished line too."""
        with self._lock:
            begun, self._begun = self._begun, ""
        self._send(begun)

    def _send(self, text: str) -> None:
        if text:
            self.output.write(text.encode(self._encoding, "backslashreplace"))

    def isatty(self) -> bool:
        return os.isatty(self.output.fd)

    def fileno(self) -> int:
        return self.output.fd

    def writable(self) -> bool:
        return True


def write_by_threads(output: Format = LINES) -> None:
    """Write standard output and error by threads from now on, so that printing never waits for a reader.

    Lines left out of standard output are reported in the format `output`.
    """
    is_one = os.path.sameopenfile(1, 2)
    encode = output.encode
    out = Output(1, _left_out if encode is None else lambda count: encode({"event": "left_out", "lines": count}))
    err = out if is_one else Output(2, _left_out)
    for name, each in (("stdout", out), ("stderr", err)):
        before = getattr(sys, name)
        if not isinstance(before, ThreadedStream):
            before.flush()
        setattr(sys, name, ThreadedStream(each, before.encoding))


def finish_writing(stall: float = STALL_S) -> None:
    """Wait, within bounds, until the output is read; the rest is lost."""
    streams = [each for each in (sys.stdout, sys.stderr) if isinstance(each, ThreadedStream)]
    for stream in streams:
        stream.flush()
    for output in dict.fromkeys(stream.output for stream in streams):
        output.show(())
        output.settle(stall)


def _left_out(count: int) -> str:
    return f"… {count} lines are left out here, because nothing read them.\n"


def is_read() -> bool:
    """Return False once writing to standard output has shown that it has no reader."""
    return not (isinstance(sys.stdout, ThreadedStream) and sys.stdout.output.is_gone)


def leave_screen() -> None:
    """Restore the terminal. May be called from any thread or signal handler."""
    if isinstance(sys.stdout, ThreadedStream):
        sys.stdout.output.leave()


def show(picture: Sequence[str]) -> None:
    """Replace the picture on the screen, if a thread draws it."""
    if isinstance(sys.stdout, ThreadedStream):
        sys.stdout.output.show(picture)


def say(words: str, *, to_stderr: bool = False) -> None:
    """Print a line, with control characters escaped. If no thread writes it waits, and raises as `put` does."""
    if to_stderr:
        sys.stderr.write(f"{printable(words)}\n")
    else:
        put(f"{printable(words)}\n")


def print_record(record: Record, output: Format) -> None:
    """Print a record in a format for programs. Raises as `put` does."""
    assert output.encode is not None
    put(output.encode(record))


def print_rows(rows: Sequence[Record], output: Format) -> None:
    """Print records that have the same keys: one by one for programs, as a table for people."""
    if output.is_for_programs:
        for row in rows:
            print_record(row, output)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0] if rows else ("name",):
        table.add_column(column.replace("_", " "), no_wrap=True)
    for row in rows:
        cells = (
            "-" if each is None else f"{each:g}" if isinstance(each, float) else str(each) for each in row.values()
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Page(_WHOLE_NAMES).print(table)


def put(text: str) -> None:
    """Print verbatim. Raises BrokenPipeError without a reader, WorldError if it cannot be written otherwise."""
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WorldError(f"standard output cannot be written: {error.strerror}") from None


def print_log(text: str) -> None:
    """Print lines that may be more than there is room for. It blocks, and waits for a reader while there is one."""
    is_waited_for = isinstance(sys.stdout, ThreadedStream)
    for line in coloured(text).split("\n"):
        put(f"{line}\n")
        if is_waited_for and isinstance(sys.stdout, ThreadedStream) and sys.stdout.output.is_filling:
            is_waited_for = sys.stdout.output.settle()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The size of a terminal in cells and lines, and whether it has colours that the environment does not forbid."""

    width: int
    height: int
    is_coloured: bool


class Page:
    """Lays out tables in the width of the terminal, or in `width` columns without one."""

    def __init__(self, width: int) -> None:
        self._width = width

    @cached_property
    def _measuring(self) -> Console:
        """Measures the window anew each time that it is asked."""
        return self._console()

    def lay_out(self, drawing: RenderableType, *, max_lines: int | None = None) -> list[str]:
        """Return the lines of a drawing, coloured on a terminal; at most `max_lines`."""
        console = self._console()
        with console.capture() as captured:
            console.print(drawing)
        lines = captured.get().removesuffix("\n").split("\n")
        return lines[:max_lines]

    def print(self, drawing: RenderableType) -> None:
        put("".join(f"{line}\n" for line in self.lay_out(drawing)))

    @property
    def width(self) -> int:
        return self._console().width

    @property
    def window(self) -> "Window":
        """What there is to draw on."""
        console = self._measuring
        has_colours = console.color_system is not None and not console.no_color
        return Window(width=console.width, height=console.height, is_coloured=has_colours)

    @property
    def is_terminal(self) -> bool:
        return sys.stdout.isatty()

    def _console(self) -> Console:
        """Create a console; each time, because a terminal may be resized."""
        is_terminal = sys.stdout.isatty()
        return Console(
            file=sys.stdout,
            highlight=False,
            emoji=False,
            soft_wrap=not is_terminal,
            width=None if is_terminal else self._width,
        )
