"""The examples of the README and the manual, typed in an empty folder: they work, and print what they show."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.conftest import Desk, new_desk
from tests.e2e.conftest import service as service  # noqa: PLC0414 - a fixture
from tests.e2e.screen import at_a_terminal

from .pages import PAGES, ROOT, blocks

if TYPE_CHECKING:
    from tests.e2e.conftest import Service

pytestmark = pytest.mark.slow

BIN: Final = Path(sys.executable).parent
#: For a program of ours that is not installed.
SOURCES: Final = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
#: A number that another day changes; scores have three digits behind the point, and stay.
CHANGING: Final = re.compile(r"(?<![\d.])(?!\d\.\d{3}(?!\d))\d[\d.:-]*(?: s\b)?")


@pytest.fixture
def desk(tmp_path: Path, isolation: str, service: "Service") -> Iterator[Desk]:
    desk = new_desk(tmp_path, isolation, service)
    yield desk
    desk.clear()


def shows(shown: str, printed: str) -> bool:
    """Tell if a line of the manual was printed, with the numbers and the columns of another day."""
    words = [r"[\d.:-]+(?: s)?" if number else re.escape(text) for text, number in pieces(shown)]
    return re.fullmatch(re.sub(r"(\\ )+", r"\\s+", "".join(words)), printed.rstrip()) is not None


def pieces(line: str) -> Iterator[tuple[str, bool]]:
    """The line's pieces, and whether each is a number that changes."""
    at = 0
    for match in CHANGING.finditer(line):
        yield line[at : match.start()], False
        yield match[0], True
        at = match.end()
    yield line[at:], False


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if any(each.is_run for each in blocks(text))])
def test_the_examples_work_and_print_what_they_show(page: str, desk: Desk, service: "Service") -> None:
    """One after another in one folder, with the files that the page shows in it."""
    for block in blocks(PAGES[page]):
        if block.file is not None:
            (desk.folder / block.file).write_text(block.text)
        if not block.is_run:
            continue
        for command, output in block.steps():
            environment = {"PATH": f"{BIN}:{os.environ['PATH']}"} | service.environment
            isolation = f" --isolation {desk.isolation}" if desk.isolation != "local" else ""
            typed = command + isolation if command.startswith("sweep check") else command
            ended = desk.spawn(["bash", "-c", typed], environment).end()
            assert ended.status == 0, str(ended)
            for line in output:
                printed = ended.out.splitlines() + ended.err.splitlines()
                assert line == "…" or any(shows(line, each) for each in printed), f"{line!r} is not in\n{ended}"


def test_a_topic_is_laid_out_on_a_terminal_and_markdown_elsewhere(desk: Desk) -> None:
    assert desk.sweep("docs").out == PAGES["index"]
    assert desk.sweep("docs", "scoring").out == PAGES["scoring"]
    assert "Did you mean flags?" in desk.refused("docs", "flag")
    with at_a_terminal(desk, "docs", "failures") as screen:
        drawn = screen.read(20).decode()
        assert screen.end() == 0
    assert "Failures" in drawn
    assert "StageTimeout" in drawn
    assert not re.search(r"^# |\| --- \||\*\*|```", drawn, re.MULTILINE)


def test_the_script_draws_a_picture_of_a_sweep(desk: Desk, service: "Service") -> None:
    code = (
        "from scripts.picture import *; words = ('run', 'bugfix-mini', '--agent', 'oracle', '--limit', '2'); "
        "print(svg(words, watch(words)))"
    )
    ended = desk.spawn([sys.executable, "-c", code], {**service.environment, **SOURCES}).end()
    assert ended.status == 0, str(ended)
    assert re.search(r"[12]/2&#160;done", ended.out)
    assert ended.out.startswith("<svg")
