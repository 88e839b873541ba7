"""Sweeps without a terminal: detached, followed, stopped from another one."""

import os
import signal
import socket
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.processes import carrying, read
from tests.waiting import wait_until

if TYPE_CHECKING:
    from .conftest import Desk, Service

# Agents are told from those of other tests by their arguments: these share them.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("detach")]

SLOW = "command:sleep 1; touch done"
FOREVER = "31536043"


def holder(folder: Path) -> int:
    """The process that the lock file names."""
    return int((folder / "lock").read_text().split()[1])


def has_begun(desk: "Desk", agents: int) -> bool:
    return len(desk.journal("runs/mine", "execution.started")) == agents


def test_a_detached_sweep_runs_on_in_a_session_of_its_own(served: "Desk", service: "Service") -> None:
    """The command returns when it has begun; what it says goes to a file of its folder."""
    began = time.monotonic()
    ended = served.sweep("run", "six", "--agent", SLOW, "--devboxes", "1", "--name", "mine", "--detach")
    folder = served.folder / "runs" / "mine"
    pid = holder(folder)
    assert ended.out.splitlines()[-1] == (
        f"mine runs as process {pid}: `sweep attach mine` follows it, `sweep stop mine` ends it."
    )
    assert os.getsid(pid) == pid, "it has a session of its own"
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    assert {Path(f"/proc/{pid}/fd/{number}").readlink() for number in (1, 2)} == {folder / "sweep.out"}
    assert b"SWEEP_READY" not in b"".join(read(path) for path in folder.glob("*.log"))
    assert len(served.journal("runs/mine", "trial.finished")) < 6, f"it took {time.monotonic() - began:.1f} s"

    following = served.start("attach")
    following.wait_for("Following mine")
    ended = following.end()
    assert ended.status == 0, str(ended)
    assert f"Following mine (process {pid} " in ended.out
    assert "[6/6]" in ended.out
    assert len(served.results("runs/mine")) == 6
    assert not service.alive()
    words = (folder / "sweep.out").read_text()
    assert words.startswith("Starting mine: 6 trials, 6 to do.")
    assert words.splitlines()[-4:] == ended.out.splitlines()[-4:], "both draw the same end"
    wait_until(lambda: not served.processes(), lambda: f"left behind: {served.processes()}", seconds=10)


def test_a_detached_sweep_that_cannot_begin_says_so_with_its_exit_code(served: "Desk") -> None:
    assert "Did you mean six?" in served.refused("run", "sx", "--agent", "oracle", "--detach")
    assert "Did you mean ant" in served.refused("run", "six", "--agent", "oracle", "--include", "aint", "--detach")
    assert not (served.folder / "runs").exists()
    (served.folder / "runs/mine/sweep.out").mkdir(parents=True)
    ended = served.sweep("run", "six", "--agent", "oracle", "--name", "mine", "--detach", status=1)
    assert ended.err.endswith("runs/mine/sweep.out cannot be written: Is a directory.\n")
    wait_until(lambda: not served.processes(), lambda: f"left behind: {served.processes()}", seconds=10)


def test_a_detached_sweep_that_is_killed_before_it_begins_ends_as_a_shell_says_it(served: "Desk") -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silence = {"RUNLOOP_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        started = served.start("run", "six", "--agent", "oracle", "--detach", environment=silence)
        wait_until(lambda: len(served.processes()) == 2, started, seconds=20)
        (detached,) = {*served.processes()} - {started.process.pid}
        os.kill(detached, signal.SIGKILL)
        assert started.end().status == 128 + signal.SIGKILL


def test_programs_learn_the_folder_of_a_detached_sweep(served: "Desk") -> None:
    (line,) = served.sweep("run", "six", "--agent", "oracle", "--limit", "2", "--detach", "--json").json
    assert line["event"] == "detached"
    wait_until(lambda: not served.processes(), lambda: f"still there: {served.processes()}")
    out = (served.folder / line["folder"] / "sweep.out").read_bytes().splitlines()
    events = [orjson.loads(each)["event"] for each in out if each.startswith(b"{")]
    assert events == ["trial", "trial", "sweep"]


def test_leaving_attach_does_not_stop_the_sweep(served: "Desk") -> None:
    """Ctrl-C ends the following and says so; the sweep goes on."""
    agent = f"command:exec sleep {FOREVER}"
    served.sweep("run", "six", "--agent", agent, "--limit", "1", "--name", "mine", "--detach")
    following = served.start("attach", "mine")
    following.wait_for("Following mine")
    time.sleep(0.2)  # the signal must find it following, which nothing announces
    following.interrupt()
    ended = following.end()
    assert ended.status == 130
    assert "mine keeps running: `sweep attach mine` follows it" in ended.out
    pid = holder(served.folder / "runs/mine")
    assert pid in served.processes()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in served.processes(), "it outlived SIGKILL", seconds=10)
    ended = served.sweep("attach", "mine", status=1)
    assert ended.out.startswith("mine is not running: 1 trial, 1 to do.")
    assert "its process ended without a word" in ended.out
    assert "is running" in served.refused("attach")
    served.sweep("reap", "--yes")


def test_a_sweep_is_stopped_from_elsewhere_and_those_in_flight_finish(served: "Desk", service: "Service") -> None:
    agent = "command:sleep 5; touch done"
    first = served.start("run", "six", "--agent", agent, "--devboxes", "1", "--name", "mine")
    wait_until(lambda: served.journal("runs/mine", "execution.started"), first)
    following = served.start("attach")
    following.wait_for("Following mine")
    ended = served.sweep("stop")
    assert f"Stopping mine (process {first.process.pid} " in ended.out
    assert "Waiting for 1 in flight: " in ended.out
    scores = [result["score"] for result in served.results("runs/mine")]
    assert f"mine has stopped: {len(scores)} of 6 trials are done." in ended.out
    assert "`sweep resume mine`" in ended.out
    assert [first.end().status, following.end().status] == [130, 130]
    assert set(scores) == {1.0}
    assert len(scores) < 6
    assert not served.journal("runs/mine", "attempt.ended")
    assert not service.alive()
    assert "mine is not running" in served.sweep("stop", "mine").out


def test_a_sweep_that_is_stopped_now_ends_its_agents(served: "Desk", service: "Service") -> None:
    """Within ten seconds, whether it was draining already or not."""
    command = ("run", "six", "--agent", f"command:exec sleep {FOREVER}", "--devboxes", "2", "--name", "mine")
    for is_draining in (False, True):
        served.sweep(*command, "--detach")
        owed = 4 if is_draining else 2
        wait_until(partial(has_begun, served, owed), "no agent works")
        if is_draining:
            waiting = served.start("stop")
            waiting.wait_for("Waiting for 2 in flight")
        began = time.monotonic()
        assert "mine has stopped: 0 of 6" in served.sweep("stop", "--now").out
        assert time.monotonic() - began < 12
        assert not service.alive()
        wait_until(lambda: not carrying(f"sleep\0{FOREVER}"), "agents outlived their sweep", seconds=5)
    assert waiting.end().status == 0
    ends = served.journal("runs/mine", "attempt.ended")
    assert {(end["failure"]["class"], end["counted"]) for end in ends} == {("Interrupted", False)}
    assert served.results("runs/mine") == []
