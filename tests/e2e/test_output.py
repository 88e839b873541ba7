"""Output is not the sweep: whatever becomes of who reads it, a sweep goes on to its end and its own exit code."""

import fcntl
import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.waiting import wait_until

from .conftest import PATIENCE
from .screen import at_a_terminal

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = pytest.mark.slow

#: Prints, and its scenarios take a moment each.
AGENT = "command:touch done; sleep 0.2"
LOGS = ("logs", "mine", "ant")
RUN = ("run", "six", "--agent", AGENT, "--devboxes", "2", "--name", "mine")


def outcomes(desk: "Desk") -> list[str]:
    return [result["outcome"] for result in desk.results("runs/mine")]


def test_a_terminal_that_takes_nothing_holds_the_picture_up_and_not_the_sweep(served: "Desk") -> None:
    """Like after Ctrl-S, or with an ssh that hangs. It ends with its own code all the same."""
    with at_a_terminal(served, *RUN, "--trials", "3") as screen:
        wait_until(lambda: b"Starting" in screen.read(0.1), "it never started")
        screen.stop()
        began = time.monotonic()
        assert screen.process.wait(PATIENCE) == 0
        assert time.monotonic() - began < 60
        assert len(outcomes(served)) == 18
        log = (served.folder / "runs/mine/sweep.log").read_text()
        assert "loop.stuck" not in log


def test_a_terminal_that_resumes_shows_the_newest_picture_and_the_table(served: "Desk") -> None:
    with at_a_terminal(served, *RUN) as screen:
        wait_until(lambda: b"running" in screen.read(0.1), "no picture")
        screen.stop()
        wait_until(lambda: len(served.journal("runs/mine", "trial.finished")) >= 3, "it stands still")
        screen.go_on()
        seen = b""

        def ended() -> bool:
            nonlocal seen
            seen += screen.read(0.1)
            return screen.process.poll() is not None

        wait_until(ended, lambda: str(seen), seconds=PATIENCE)
        seen += screen.read(0.1)
        assert screen.process.returncode == 0
        assert b"6/6" in seen
        assert b"Results: runs/mine/results.jsonl" in seen
        assert seen.count(b"\x1b[?25h") == 1


@pytest.mark.parametrize("pause", [0.1, 1.5], ids=["while agents are ended", "while the last words wait"])
def test_a_third_ctrl_c_leaves_at_once_though_the_terminal_takes_nothing(served: "Desk", pause: float) -> None:
    with at_a_terminal(served, "run", "six", "--agent", "command:sleep 1000", "--name", "mine") as screen:
        wait_until(
            lambda: screen.read(0.1) and served.journal("runs/mine", "execution.started"),
            "it never started",
        )
        screen.stop()
        for _ in range(3):
            screen.process.send_signal(2)
            time.sleep(pause)
        began = time.monotonic()
        assert screen.process.wait(PATIENCE) == 130
        assert time.monotonic() - began < 5
    served.sweep("reap", "--yes")


@pytest.mark.parametrize("style", [(), ("--json",)], ids=["plain", "json"])
def test_a_pipe_that_nobody_reads_does_not_hold_a_sweep_up(served: "Desk", style: tuple[str, ...]) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, b"x" * 4096)
    ended = served.start(*RUN, *style, out=write)
    os.close(write)
    assert ended.end(PATIENCE).status == 0
    os.close(read)
    assert outcomes(served) == ["scored"] * 6


@pytest.mark.parametrize(
    "words",
    [RUN, (*RUN, "--json"), ("scenario", "run", "ant", "--benchmark", "six", "--agent", AGENT)],
    ids=["plain", "json", "scenario"],
)
def test_a_reader_that_goes_away_ends_the_output_and_not_the_sweep(served: "Desk", words: tuple[str, ...]) -> None:
    """Like `sweep run … | head -1`."""
    read, write = os.pipe()
    running = served.start(*words, out=write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        if "--json" not in words:
            pipe.readline()
    ended = running.end()
    assert ended.status == 0, str(ended)
    assert ended.err.startswith("Starting ") if "--json" in words else not ended.err, str(ended)
    if words[0] == "run":
        assert outcomes(served) == ["scored"] * 6


@pytest.mark.parametrize("how", [">/dev/full", ">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/full 2>&1", "2>/dev/full"])
def test_a_sweep_without_writable_output_runs_all_the_same(served: "Desk", how: str) -> None:
    """And nothing that is printed lands in a file of ours."""
    command = f'exec "$0" -m orchestrator "$@" {how}'
    assert served.service is not None
    ended = served.spawn(["sh", "-c", command, sys.executable, *RUN], served.service.environment).end()
    assert ended.status == 0, str(ended)
    assert outcomes(served) == ["scored"] * 6
    assert {event["event"] for event in served.journal("runs/mine")} >= {"sweep.opened", "sweep.ended"}
    for file in (served.folder / "runs/mine").iterdir():
        assert not (file.is_file() and b"Starting mine" in file.read_bytes()), file


@pytest.mark.parametrize("how", [">&- 2>&- <&-", ">/dev/full"])
def test_a_service_of_its_own_starts_where_nothing_can_be_written(desk: "Desk", how: str) -> None:
    isolation = ("--isolation", "none") if desk.isolation == "none" else ()
    words = ("run", "bugfix-mini", "--agent", "oracle", "--limit", "1", "--name", "mine", *isolation)
    ended = desk.spawn(["sh", "-c", f'exec "$0" -m orchestrator "$@" {how}', sys.executable, *words]).end()
    assert ended.status == 0, str(ended)
    assert outcomes(desk) == ["scored"]


@pytest.mark.parametrize("words", [("agents", "list"), ("agents", "list", "--json"), ("--help",), LOGS])
def test_closing_the_pipe_of_a_list_gives_no_traceback(served: "Desk", words: tuple[str, ...]) -> None:
    if words[0] == "logs":
        served.sweep("run", "six", "--agent", "command:seq 100000", "--limit", "1", "--name", "mine")
    read, write = os.pipe()
    os.close(read)
    running = served.start(*words, out=write)
    os.close(write)
    ended = running.end()
    assert (ended.status, ended.err) == (1, ""), str(ended)


@pytest.mark.parametrize("words", [("agents", "list"), ("agents", "list", "--json"), ("agents", "show", "codex")])
def test_a_list_that_cannot_be_written_is_a_failure_that_is_said_once(served: "Desk", words: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        ended = served.start(*words, out=full.fileno()).end()
    said = "sweep: standard output cannot be written: No space left on device\n"
    assert (ended.status, ended.err) == (1, said), str(ended)


def test_closing_the_pipe_of_attach_ends_attach_and_not_the_sweep(served: "Desk") -> None:
    gate = served.folder / "go"
    (served.folder / "mine.py").write_text(
        "import pathlib, time\n"
        "def agent(prompt, workspace):\n"
        f"    while not pathlib.Path({str(gate)!r}).exists():\n"
        "        time.sleep(0.05)\n"
    )
    agent = "./mine.py:agent"
    sweep = served.start("run", "six", "--agent", agent, "--name", "mine", "--limit", "3", "--devboxes", "1")
    wait_until(lambda: served.journal("runs/mine", "stage.entered"), sweep)
    read, write = os.pipe()
    following = served.start("attach", "mine", out=write)
    os.close(write)
    os.read(read, 100)
    os.close(read)
    gate.touch()
    ended = following.end()
    assert (ended.status, ended.err) in {(1, ""), (0, "")}, str(ended)
    assert sweep.end().status == 0


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (2, 3), (1, 500), (500, 1)])
def test_a_terminal_of_any_size_is_drawn_on(served: "Desk", size: tuple[int, int]) -> None:
    with at_a_terminal(served, *RUN) as screen:
        wait_until(lambda: b"running" in screen.read(0.1), "no picture")
        screen.resize(*size)
        assert screen.end() == 0
    assert outcomes(served) == ["scored"] * 6


@pytest.mark.parametrize("term", ["dumb", "", "unknown"])
def test_a_terminal_that_cannot_be_drawn_on_gets_lines(served: "Desk", term: str) -> None:
    with at_a_terminal(served, *RUN, "--limit", "2", term=term) as screen:
        seen = b""
        while piece := screen.read(30):
            seen += piece
        assert screen.process.wait(PATIENCE) == 0
    assert b"\x1b[?25l" not in seen
    assert b"[2/2]" in seen
