"""The real command told to stop, by signals, by a closed terminal, by a budget; whatever else is broken meanwhile."""

import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.processes import read
from tests.waiting import wait_until

from .conftest import MARK
from .screen import at_a_terminal

if TYPE_CHECKING:
    from .conftest import Desk, Running, Service

pytestmark = pytest.mark.slow

FOREVER = "command:exec sleep 31536044"


def handles(running: "Running", number: signal.Signals) -> bool:
    """Tell if a process has a handler of its own for a signal."""
    for line in read(Path(f"/proc/{running.process.pid}/status")).splitlines():
        if line.startswith(b"SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.6])
def test_a_signal_before_anything_has_begun_ends_it_quietly(desk: "Desk", number: signal.Signals, delay: float) -> None:
    """While it loads, looks for its agents and starts its service."""
    running = desk.start("run", "bugfix-mini", "--agent", "oracle", "--limit", "1")
    wait_until(lambda: handles(running, signal.SIGTERM), running)
    time.sleep(delay)
    running.process.send_signal(number)
    ended = running.end(30)
    assert ended.status == 130, str(ended)
    assert not ended.err, str(ended)


def test_the_second_signal_ends_it_in_time_though_the_service_stands_still(desk: "Desk") -> None:
    running = desk.start("run", "bugfix-mini", "--agent", FOREVER, "--limit", "2", "--name", "mine")
    wait_until(lambda: len(desk.journal("runs/mine", "execution.started")) == 2, running)
    (address,) = desk.folder.glob("runs/.service/*/address.json")
    service = int(orjson.loads(address.read_bytes())["pid"])
    os.kill(service, signal.SIGSTOP)
    try:
        running.process.terminate()
        running.wait_for("Press Ctrl-C again")
        assert "2 solving; at most " in running.out
        running.process.terminate()
        began = time.monotonic()
        ended = running.end()
        assert time.monotonic() - began < 10
        assert ended.status == 130, str(ended)
    finally:
        os.kill(service, signal.SIGCONT)
    assert desk.results("runs/mine") == []
    ends = desk.journal("runs/mine", "attempt.ended")
    assert {(end["failure"]["class"], end["counted"]) for end in ends} <= {("Interrupted", False)}


def test_a_drain_that_takes_longer_than_asked_ends_what_is_in_flight(served: "Desk", service: "Service") -> None:
    running = served.start("run", "six", "--agent", FOREVER, "--limit", "1", "--name", "mine", "--drain", "1s")
    wait_until(lambda: served.journal("runs/mine", "execution.started"), running)
    running.process.terminate()
    ended = running.end(20)
    assert ended.status == 130, str(ended)
    assert "Stopped: SIGTERM. 1 of 1 trial is left: run the sweep again for it." in ended.out
    assert not service.alive()


def test_a_closed_terminal_lets_those_in_flight_finish(desk: "Desk") -> None:
    """Nothing can be drawn any more, and nothing else suffers from it."""
    words = ["run", "bugfix-mini", "--agent", "command:sleep 3", "--limit", "3", "--devboxes", "1", "--name", "mine"]
    words += ["--isolation", "none"] if desk.isolation == "none" else []
    with at_a_terminal(desk, *words) as screen:

        def solves() -> bool:
            screen.read()
            return bool(desk.journal("runs/mine", "execution.started"))

        wait_until(solves, MARK)
        screen.hang_up()
        screen.process.send_signal(signal.SIGHUP)
        assert screen.process.wait(60) == 130
    assert [result["outcome"] for result in desk.results("runs/mine")] == ["scored"]
    assert desk.journal("runs/mine")[-1]["reason"] == "interrupted: SIGHUP"


def test_a_budget_stops_a_sweep_with_the_reason_and_a_higher_one_continues_it(served: "Desk") -> None:
    command = ("run", "six", "--agent", "command:false", "--on-agent-failure", "fail", "--devboxes", "1")
    ended = served.sweep(*command, "--max-failures", "2", status=1)
    run = ended.folder
    assert "Stopped: --max-failures 2 is reached; raise it to continue. 4 of 6 trials are left" in ended.out
    assert len(served.results(run)) == 2
    assert served.journal(run)[-1]["reason"].startswith("stopped: --max-failures 2 is reached")

    again = served.sweep(*command, "--max-failures", "2", status=1)
    assert "Resuming" in again.out
    assert "Stopped: --max-failures 2 is reached" in again.out
    assert len(served.results(run)) == 2

    more = served.sweep(*command, "--max-failures", "9", status=1)
    assert "Stopped" not in more.out
    assert len(served.results(run)) == 6


@pytest.mark.parametrize(
    ("deadline", "words"),
    [
        ("2020-01-01T07:00", "--deadline: 2020-01-01T07:00 is in the past. Give a later time."),
        ("5", "--deadline: 5 has no unit. Write 5h, 5m, 5s, or a time such as 07:00."),
    ],
)
def test_a_deadline_in_the_past_and_a_number_alone_are_refused_with_the_fix(
    served: "Desk", deadline: str, words: str
) -> None:
    for how in ([], ["--dry-run"]):
        line = served.refused("run", "six", "--agent", "nop", "--deadline", deadline, "--name", "mine", *how)
        assert words in line
    assert not (served.folder / "runs").exists()


def test_a_mistyped_command_stops_the_sweep_with_what_it_printed(served: "Desk") -> None:
    """It would be an honest 0.000 else; a resume knows of the crashes."""
    command = ("run", "six", "--agent", "command:claude-cod --fast", "--trials", "2", "--devboxes", "2")
    ended = served.sweep(*command, "--same-failures", "3", status=1)
    stopped = next(line for line in ended.out.splitlines() if line.startswith("Stopped: "))
    how = r"Stopped: the agent of command crashed in each of its [34] trials so far, with exit status 127: "
    assert re.match(how, stopped)
    assert "claude-cod: command not found. Fix it, and start a new sweep, or run these again with" in stopped
    run = Path(ended.folder).name
    count = len(served.results(ended.folder))
    assert ended.out.index(f"Flagged:\n  {count}  agent_crashed: ") < ended.out.index(
        f"     sweep logs {run} ant --trial 1\n"
    )
    assert "Every result of command is flagged" in ended.out.splitlines()[-1]
    again = served.sweep("resume", status=1)
    assert "Stopped: the agent of command crashed in each of its " in again.out
    assert count < len(served.results(ended.folder)) <= count + 2


def test_a_budget_in_a_settings_file_is_heeded(served: "Desk") -> None:
    file = served.folder / "sweep.toml"
    file.write_text(
        'benchmark = "six"\nmax_failures = 1\non_agent_failure = "fail"\n[[arms]]\nagent = "command:false"\n'
    )
    ended = served.sweep("run", "--config", "sweep.toml", "--devboxes", "1", status=1)
    assert "--max-failures 1 is reached" in ended.out
