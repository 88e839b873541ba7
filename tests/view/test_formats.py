"""The table of output formats: an entry in it is all that a new format needs."""

import csv
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from orchestrator.cli import app
from orchestrator.core.ledger import fold
from orchestrator.view.formats import FORMATS, JSON, LINES, SCREEN, Format, find
from orchestrator.view.progress import Progress

from .conftest import State, make_plan, scored

ADD_ROWS: Final = """
import csv, io
from orchestrator.view.formats import FORMATS, Format

def encode(record):
    text = io.StringIO()
    csv.writer(text).writerow(record.values())
    return text.getvalue()

FORMATS["rows"] = Format(name="rows", help="A row for each record.", encode=encode)
"""
RUN: Final = ADD_ROWS + "from orchestrator.cli import main; main()"
OFFERS: Final = """
import typer
from orchestrator.cli import app

def show(name, command):
    options = {option for each in command.params for option in each.opts}
    assert ("--rows" in options) == ("--json" in options)
    if "--rows" in options:
        print(name)
    for word, below in getattr(command, "commands", {}).items():
        show(f"{name} {word}", below)

show("sweep", typer.main.get_command(app))
"""


def python(code: str, folder: Path, *words: str, status: int = 0) -> tuple[str, str]:
    """What a program prints, to standard output and to standard error."""
    command = [sys.executable, "-P", "-c", code, *words]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == status, ended.stderr
    return ended.stdout, ended.stderr


def test_a_format_in_the_table_is_offered_by_every_command_that_offers_json(tmp_path: Path) -> None:
    offering, _ = python(ADD_ROWS + OFFERS, tmp_path)
    assert {"sweep run", "sweep resume", "sweep attach", "sweep reap", "sweep agents list"} <= {*offering.splitlines()}


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (("agents", "list"), "aider"),
        (("agents", "show", "nop"), "nop"),
        (("run", "bugfix-mini", "--agent", "nop", "--limit", "2", "--dry-run"), "plan"),
    ],
)
def test_a_format_in_the_table_is_written(tmp_path: Path, words: tuple[str, ...], first: str) -> None:
    out, _ = python(RUN, tmp_path, *words, "--rows")
    rows = list(csv.reader(StringIO(out)))
    assert rows[0][0] == first
    assert min(map(len, rows)) > 4


def test_a_sweep_is_told_in_a_format_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    output = Format(name="pairs", encode=lambda record: f"{';'.join(record)}\n")
    ledger, plan = fold([scored("s0/a/1", 1.0)]), make_plan("x")
    Progress(ledger=ledger, plan=plan, state=State(), folder=Path("f"), output=output, opening="Starting it").finish()
    out, err = capsys.readouterr()
    assert out == "event;folder;arms;failures;flags\n"
    assert err == "Starting it: 1 trial, 0 to do.\n"


def test_two_formats_at_once_are_refused(tmp_path: Path) -> None:
    _, err = python(RUN, tmp_path, "agents", "list", "--rows", "--json", status=2)
    assert "--json" in err
    assert "--rows" in err


def test_only_formats_for_programs_have_a_flag_and_each_describes_it() -> None:
    command: Any = typer.main.get_command(app)
    run = {option: each.help for each in command.commands["run"].params for option in each.opts}
    show: Any = {option: each.help for each in command.commands["show"].params for option in each.opts}
    for name, each in FORMATS.items():
        assert run.get(f"--{name}", "") == (each.help if each.encode else "")
        assert show.get(f"--{name}", "") == each.help, "a command that prints a table offers the formats of tables too"


@pytest.mark.parametrize(
    ("term", "is_terminal", "name", "output"),
    [
        ("xterm", True, None, SCREEN),
        ("xterm", False, None, LINES),
        ("dumb", True, None, LINES),
        ("", True, None, LINES),
        ("xterm", True, "json", JSON),
    ],
)
def test_without_a_name_it_is_what_standard_output_can_show(
    monkeypatch: pytest.MonkeyPatch, *, term: str, is_terminal: bool, name: str | None, output: Format
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert find(name) is output
