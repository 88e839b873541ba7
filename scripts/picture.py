"""Draws a running sweep as an SVG: runs one at a terminal, and takes what is on the screen when half of it is done."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

WORDS: Final = ("run", "bugfix-mini", "--agent", "oracle", "--agent", "nop", "--limit", "16")
COLUMNS: Final = 100
#: What `view.console` writes to draw its picture again.
REDRAW: Final = b"\r\x1b[2K"
CURSOR: Final = re.compile(rb"\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r")
#: rich's template without its web fonts: a picture in a manual loads nothing.
TEMPLATE: Final = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def main() -> None:
    file = Path(sys.argv[1])
    file.write_text(svg(WORDS, watch(WORDS)), encoding="utf-8")
    print(f"Wrote {file}.")


def watch(words: Sequence[str]) -> str:
    """Run the sweep; returns its first line and its live picture when half of its trials are done, with colours.

    Raises ValueError if it ends before.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "orchestrator", *words]
    with tempfile.TemporaryDirectory(prefix="sweep-picture-") as folder:
        environment = {**os.environ, "TERM": "xterm-256color", "SWEEP_RUNS": folder}
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        try:
            seen, picture = b"", b""
            while not _is_half_done(picture):
                seen += os.read(ours, 65536)
                picture = seen[: seen.rfind(REDRAW)].rpartition(REDRAW)[2]  # the last one may not be whole yet
        except OSError:
            raise ValueError(f"the sweep ended early: {seen.decode()[-2000:]}") from None
        finally:
            process.terminate()
            while _is_read(ours):
                pass
            process.wait(60)
            os.close(ours)
    first = next(line for line in seen.splitlines() if line.startswith(b"Starting "))
    return CURSOR.sub(b"", first + b"\n" + picture).decode()


def svg(words: Sequence[str], screen: str) -> str:
    """A screen as a picture, under the command that was typed."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="256")
    console.print(Text(f"$ {' '.join(('sweep', *words))}", style="bold"))
    console.print(Text.from_ansi(screen), "")  # rich clips all lines but the last
    return console.export_svg(title="sweep", code_format=TEMPLATE, unique_id="sweep")


def _is_half_done(picture: bytes) -> bool:
    done = re.search(rb"(\d+)/(\d+) done", picture)
    return done is not None and 2 * int(done[1]) >= int(done[2])


def _is_read(fd: int) -> bool:
    try:
        return bool(os.read(fd, 65536))
    except OSError:  # nobody writes to it any more
        return False


if __name__ == "__main__":
    main()
