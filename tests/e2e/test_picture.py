"""The live picture of a real sweep at a real terminal: what a person sees, at each size and after each change of it."""

import re
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
from rich.cells import cell_len

from .screen import Glass, Screen, at_a_terminal

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = pytest.mark.slow

#: Prints what a terminal would obey, and then works for longer than anybody looks.
AGENT: Final = (
    r"command:printf '\033[31mred\033[0m\n\033]0;pwned\007\033[2Jlast \342\200\256line \346\274\242\345\255\227'; "
    "sleep 60"
)
SIZES: Final = ((40, 120), (15, 40), (24, 80))
HEAD: Final = re.compile(r"\d+/6 done")


def has(glass: Glass, *words: str) -> bool:
    return all(any(word in line for line in glass.lines) for word in words)


def is_anew(glass: Glass, before: int) -> bool:
    """Tell if the picture was drawn on a screen that was made anew."""
    return glass.made_anew > before and has(glass, "idle", "solving")


def watch(screen: Screen, glass: Glass, until: Callable[[], bool]) -> None:
    """Read until this holds of the screen."""
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline, "\n".join(glass.lines)
        glass.feed(screen.read(0.05))


def test_the_picture_fits_its_window_and_is_whole_after_each_change_of_size(served: "Desk") -> None:
    """And finished trials are above it, with their reasons; at the end the summary, and what to type next."""
    words = ("run", "six", "-a", AGENT, "-a", "nop", "--limit", "3", "--name", "live", "--devboxes", "4")
    with at_a_terminal(served, *words, "--max-cost", "20") as screen:
        glass = Glass(24, 100)
        watch(screen, glass, lambda: has(glass, "solving", "last line", "nop", "$0.00 of $20.00"))
        for rows, columns in SIZES:
            before = glass.made_anew
            screen.resize(rows, columns)
            glass.resize(rows, columns)
            watch(screen, glass, partial(is_anew, glass, before))
            for _ in range(2):  # what is drawn over it next
                glass.feed(next(filter(None, iter(lambda: screen.read(0.05), None))))
            lines = glass.lines
            assert len(lines) <= rows
            assert max(map(cell_len, lines)) <= columns
            assert sum(bool(HEAD.search(line)) for line in lines) == 1, "\n".join(lines)
            assert all(line.isprintable() for line in lines)
        assert any("last \\u202eline 漢字" in line for line in lines), "\n".join(lines)
        assert any(re.match(r"\[\d/6\] \w+ nop  0.000", line) for line in lines), "\n".join(lines)
        screen.process.send_signal(signal.SIGINT)
        watch(screen, glass, lambda: has(glass, "Press Ctrl-C again"))
        screen.process.send_signal(signal.SIGINT)
        watch(screen, glass, lambda: has(glass, "Next: sweep resume live"))
        assert not any("idle" in line for line in glass.lines), "the picture is gone at the end"
        assert screen.end() == 130
