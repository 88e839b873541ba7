"""Names and texts of others are printed, whatever is in them, and no terminal obeys them."""

import os
from typing import TYPE_CHECKING

import pytest

from .conftest import reward, write_scenario
from .screen import at_a_terminal

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Desk

pytestmark = pytest.mark.slow

#: A colour, a title, a letter that turns those behind it round, markup of rich's, a line of its own.
ESCAPES = "\x1b[31m\x1b]0;owned\x07\x9b2J\u202e[red]"
FORGED = "[1/1] forged  1.000"
HOSTILE = f"{ESCAPES}\n{FORGED}"


def is_harmless(text: str) -> bool:
    """Tell if every line is printable, and none is the forged one."""
    return all(line.isprintable() and not line.startswith(FORGED) for line in text.split("\n"))


def isolated(desk: "Desk", *words: str) -> tuple[str, ...]:
    return (*words, "--isolation", "none") if desk.isolation == "none" else words


def write_hostile(folder: "Path") -> None:
    """A benchmark whose scenario, reference and scorer say what they like."""
    said = f"printf %s '{ESCAPES}'"
    write_scenario(
        folder / HOSTILE.replace("/", ""), solution=f"{said}\ntouch /app/done\n", test=f"{said}\n{reward('true')}"
    )


def test_a_benchmark_that_names_things_as_it_likes_is_listed_checked_and_run(desk: "Desk") -> None:
    bench = desk.folder / "bench"
    write_hostile(bench)
    for words in (
        ("check", "./bench", "--static"),
        ("check", "./bench"),
        ("benchmarks", "show", "./bench"),
        ("run", "./bench", "--agent", "oracle", "--dry-run"),
        ("run", "./bench", "--agent", "oracle", "--name", "mine"),
        ("attach", "mine"),
        ("logs", "mine"),
        ("logs", "mine", "nothing like it"),
        ("scenario", "run", "nothing like it", "--benchmark", "./bench", "--agent", "oracle"),
    ):
        ended = desk.start(*words).end()
        assert is_harmless(ended.out), str(ended)
        assert is_harmless(ended.err), str(ended)
        assert ended.status in {0, 1, 2}, str(ended)


def test_agents_that_describe_themselves_as_they_like_are_listed_and_shown(served: "Desk") -> None:
    agents = served.folder / "agents"
    agents.mkdir()
    described = '"\\u001b[31m\\u009b2J\\u202e[red]\\n[1/1] forged  1.000"'
    (agents / "mine.toml").write_text(f'description = {described}\nrun = "true"\n')
    (agents / os.fsdecode(b"b\x1b[2Jr\xffken.toml")).write_text("what = \x1b[31m")
    for words in (("agents", "list"), ("agents", "list", "--json"), ("agents", "show", "mine")):
        ended = served.sweep(*words)
        assert is_harmless(ended.out), str(ended)
        assert "[red]" in ended.out
    refused = served.start("agents", "show", f"./{HOSTILE}.toml").end()
    assert refused.status == 2
    assert is_harmless(refused.err), str(refused)


def test_json_lines_are_harmless_too_and_mean_what_was_said(desk: "Desk") -> None:
    """They can be read at a terminal."""
    write_hostile(desk.folder / "bench")
    ended = desk.start("run", "./bench", "--agent", "oracle", "--json").end()
    assert is_harmless(ended.out), str(ended)
    for line in ended.json if ended.status == 0 else ():
        assert "\\x1b[31m" in str(line.get("scenario_name", "\\x1b[31m")), "a folder's name is the scenario's, escaped"


def shown(desk: "Desk", *words: str) -> bytes:
    """Output of a command at a terminal."""
    with at_a_terminal(desk, *words) as screen:
        return screen.read(60)


def test_a_terminal_gets_the_colours_of_a_log_and_nothing_else_that_it_would_obey(served: "Desk") -> None:
    """A pipe gets it byte for byte, and so does a terminal that is to."""
    said = r"\033[32mgreen\033[0m\033]0;owned\007\033[2J\rtab\there\n"
    served.sweep("run", "six", "--agent", f"command:printf '{said}'", "--limit", "1", "--name", "mine")
    raw = b"\x1b[32mgreen\x1b[0m\x1b]0;owned\x07\x1b[2J\rtab\there\n"
    printed = served.start("logs", "mine", "ant")
    assert printed.end().status == 0
    assert printed.files.with_suffix(".out").read_bytes() == raw
    seen = shown(served, "logs", "mine", "ant")
    assert seen == rb"~[32mgreen~[0m\x1b]0;owned\x07\x1b[2J\rtab".replace(b"~", b"\x1b") + b"\there\r\n"
    assert shown(served, "logs", "mine", "ant", "--raw") == raw.replace(b"\n", b"\r\n")


def test_files_that_are_left_out_are_named_on_lines_of_their_own(served: "Desk") -> None:
    """By an agent that calls one of them as a line of the list would look."""
    agents = served.folder / "agents"
    agents.mkdir()
    run = r"""mkdir -p ~/out; cd ~/out; for n in "$(printf 'a\033[31m\rpiece b')" "$(printf 'c\nartifacts: forged')"
do truncate -s 65M "$n"; done"""
    (agents / "mine.toml").write_text(f"run = '''\n{run}\n'''\n[gather]\nfiles = ['~/out']\n")
    served.sweep("run", "six", "--agent", "mine", "--limit", "1", "--name", "mine", status=1)
    (result,) = served.results("runs/mine")
    assert "left_out" in result["files"], result["files"]
    told = served.log("runs/mine", result, "left_out")
    assert is_harmless(told), told
    assert not [line for line in told.split("\n") if line.startswith("artifacts: forged")]
