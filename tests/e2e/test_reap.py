"""Leftovers of sweeps on an endpoint are listed, and released if they are ours."""

import os
import pty
import shutil
import subprocess
import sys
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.waiting import wait_until

if TYPE_CHECKING:
    from .conftest import Desk, Running, Service

pytestmark = pytest.mark.slow


def left_behind(desk: "Desk", name: str, *words: str) -> "Running":
    """A sweep that was killed while two agents worked."""
    first = desk.start("run", *words, "--agent", "command:exec sleep 31536045", "--devboxes", "2", "--name", name)
    wait_until(lambda: len(desk.journal(f"runs/{name}", "execution.started")) == 2, first)
    first.kill()
    return first


def test_leftovers_of_a_killed_sweep_are_listed_released_and_run_again(served: "Desk", service: "Service") -> None:
    """Off a terminal it takes --yes; the next resume begins the interrupted attempts anew, and none is counted."""
    left_behind(served, "mine", "six", "--limit", "3")
    alive = set(service.alive())
    listed = served.sweep("reap")
    assert "runs/mine, 0 of 3 trials done, not in use" in listed.out
    assert "Nothing was released: --yes" in listed.out
    assert all(identity in listed.out for identity in alive)
    assert set(service.alive()) == alive

    lines = {line["folder"]: line for line in served.sweep("reap", "--yes", "--json").json}
    assert (lines["runs/mine"]["released"], len(lines["runs/mine"]["devboxes"])) == (True, 2)
    assert not any(line["released"] for line in lines.values() if line["folder"] is None)
    assert not service.alive()
    assert "runs/mine" not in served.sweep("reap").out
    ends = served.journal("runs/mine", "attempt.ended")
    assert {(end["failure"]["class"], end["counted"]) for end in ends} == {("Interrupted", False)}

    ended = served.start("resume", "mine")
    wait_until(lambda: len(served.journal("runs/mine", "execution.started")) == 4, ended)
    served.sweep("stop", "--now")
    assert ended.end().status == 130


def test_reap_asks_first_on_a_terminal(served: "Desk", service: "Service") -> None:
    left_behind(served, "mine", "six", "--limit", "2")
    for no in ("n", "\x04"):  # and Ctrl-D
        assert "Nothing was released" in typed(served, no, "reap")
    assert service.alive()
    said = typed(served, "y", "reap")
    assert "It includes sweeps with 2 trials to do: a resume runs again what is released now." in said
    assert "released." in said
    assert not service.alive()


def typed(desk: "Desk", answer: str, *words: str) -> str:
    """Output of a command on a terminal where its question is answered; whole lines, as wide as they come."""
    assert desk.service is not None
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 300))
    environment = desk.environment(desk.service.environment)
    command = [sys.executable, "-m", "orchestrator", *words]
    with subprocess.Popen(command, cwd=desk.folder, env=environment, stdin=theirs, stdout=theirs) as process:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        said = b""
        with suppress(OSError):  # how a terminal says that nobody writes to it any more
            while piece := os.read(ours, 10_000):
                said += piece
        os.close(ours)
    assert process.returncode == 0
    return said.decode()


def test_a_sweep_at_work_keeps_what_it_has_whatever_is_said(served: "Desk", service: "Service") -> None:
    command = ("run", "six", "--agent", "command:exec sleep 31536045", "--limit", "1", "--name", "mine")
    first = served.start(*command)
    wait_until(lambda: served.journal("runs/mine", "execution.started"), first)
    alive = service.alive()
    ended = served.sweep("reap", "--sweep", "mine", "--yes")
    assert f"in use by process {first.process.pid} " in ended.out
    assert service.alive() == alive
    served.sweep("stop", "--now")
    assert first.end().status == 130


def test_a_sweep_whose_folder_is_elsewhere_is_released_by_its_id_only(served: "Desk", service: "Service") -> None:
    """It may be another machine's; and nobody's devbox is never touched."""
    left_behind(served, "mine", "six", "--limit", "2")
    answer = service.http.post("/v1/devboxes", json={"name": "nobodys"})
    answer.raise_for_status()
    nobodys = answer.json()["id"]
    sweep = served.journal("runs/mine", "sweep.opened")[0]["sweep"]
    shutil.move(served.folder / "runs", served.folder / "elsewhere")
    alive = set(service.alive())

    ended = served.sweep("reap", "--yes")
    assert f"its folder is not here. If it is yours and not in use, release it: --sweep {sweep} --yes" in ended.out
    assert "belong to no sweep and are left alone: 1." in ended.out
    assert set(service.alive()) == alive
    served.sweep("reap", "--sweep", sweep)
    assert set(service.alive()) == alive
    assert "released" in served.sweep("reap", "--sweep", sweep, "--yes").out
    assert service.alive() == [nobodys]
    service.http.post(f"/v1/devboxes/{nobodys}/shutdown").raise_for_status()


def test_a_result_that_is_there_outlives_the_reaping(served: "Desk", service: "Service") -> None:
    """Only the endpoint has the score: its run is completed, not canceled, and the resume takes the score."""
    agent = "command:touch done; echo ready; exec sleep 31536045"
    first = served.start("run", "six", "--agent", agent, "--limit", "1", "--name", "mine")

    def is_ready() -> bool:
        return any(log.read_text() == "ready\n" for log in (served.folder / "runs/mine").rglob("agent.log"))

    wait_until(is_ready, first)
    first.kill()
    (run,) = [event["run"] for event in served.journal("runs/mine", "run.started")]
    service.http.post(f"/v1/scenarios/runs/{run}/score").raise_for_status()

    def is_scored() -> bool:
        return bool(service.http.get(f"/v1/scenarios/runs/{run}").json()["state"] == "scored")

    wait_until(is_scored, "never scored", seconds=30)
    served.sweep("reap", "--yes")
    assert not service.alive()
    assert "Resuming mine: 1 trial, 1 to do." in served.sweep("resume", status=1).out
    (result,) = served.results("runs/mine")
    assert result["flags"] == ["gather_incomplete"]
    assert (result["score"], len(served.journal("runs/mine", "execution.started"))) == (1.0, 1)


def test_the_embedded_service_is_asked_if_it_runs_and_never_started(desk: "Desk") -> None:
    ended = desk.sweep("reap")
    assert "No service of runs is running" in ended.out
    assert not (desk.folder / "runs").exists()
    left_behind(desk, "mine", "bugfix-mini", "--limit", "2")
    assert "0 of 2 trials done, not in use" in desk.sweep("reap").out
    assert "released" in desk.sweep("reap", "--yes").out
    assert "no sweep has anything here" in desk.sweep("reap").out
    assert list((desk.folder / "runs" / ".service").iterdir())
