"""Run folders on file systems without locks: a cause, a way, and what is left of the protection."""

import os
import signal
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.waiting import wait_until

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = pytest.mark.slow

#: What flock(2) is to every process of a desk: refused, or granted to everybody.
FLOCK = """
import errno, fcntl, os
def flock(*_):
    if number := os.environ.get("FLOCK_ERROR"):
        raise OSError(int(number), os.strerror(int(number)))
if "FLOCK_ERROR" in os.environ:
    fcntl.flock = flock
"""
REFUSED = {"FLOCK_ERROR": "37"}
GRANTED = {"FLOCK_ERROR": ""}


def without_locks(desk: "Desk", how: dict[str, str]) -> dict[str, str]:
    """An environment in which the desk's file systems are of that kind, for the service that it starts too."""
    place = desk.home / "patch"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(FLOCK)
    return how | {"PYTHONPATH": str(place)}


WORDS = ("run", "bugfix-mini", "--agent", "oracle", "--limit", "1", "--name", "mine")


@pytest.mark.parametrize(
    ("how", "cause"), [(REFUSED, "No locks available"), (GRANTED, "keep nobody out")], ids=["refused", "granted"]
)
def test_the_cause_is_named_with_a_way_which_works(desk: "Desk", how: dict[str, str], cause: str) -> None:
    environment = without_locks(desk, how)
    line = desk.refused(*WORDS, environment=environment)
    assert cause in line
    assert "--lock none" in line
    ended = desk.sweep(*WORDS, "--lock", "none", environment=environment)
    assert "As --lock none says, no lock is held" in ended.out
    assert [result["score"] for result in desk.results("runs/mine")] == [1.0]
    wait_until(lambda: not [*desk.folder.glob("runs/**/holder.json")], "a note is left")  # its service ends after it


@pytest.mark.parametrize("how", [REFUSED, GRANTED], ids=["refused", "granted"])
def test_without_locks_a_second_process_is_kept_out_and_learns_the_first(served: "Desk", how: dict[str, str]) -> None:
    environment = without_locks(served, how) | {"SWEEP_LOCK": "none"}
    words = ("run", "six", "--agent", "command:sleep 1000", "--limit", "1", "--name", "mine")
    running = served.start(*words, environment=environment)
    wait_until(lambda: served.journal("runs/mine", "execution.started"), running)
    line = served.refused(*words, environment=environment)
    assert f"in use by process {running.process.pid} on {os.uname().nodename}, without a lock" in line
    stopped = served.sweep("stop", "mine", "--now", environment=environment)
    assert "mine has stopped" in stopped.out
    assert running.end().status == 130
    assert "mine is not running" in served.sweep("stop", "mine", environment=environment).out


def test_a_sweep_killed_without_a_lock_is_resumed_without_one(served: "Desk") -> None:
    """The note that it left counts no more, and its manifest says that there are no locks."""
    environment = without_locks(served, REFUSED)
    gate = served.folder / "go"
    (served.folder / "slow.py").write_text(
        "import pathlib, time\n"
        "def agent(prompt, workspace):\n"
        f"    while not pathlib.Path({str(gate)!r}).exists():\n"
        "        time.sleep(0.05)\n"
        "    workspace.exec('touch done')\n"
    )
    words = ("run", "six", "--agent", "./slow.py:agent", "--limit", "1", "--name", "mine", "--lock", "none")
    running = served.start(*words, environment=environment)
    wait_until(lambda: served.journal("runs/mine", "agent.started"), running)
    running.process.send_signal(signal.SIGKILL)
    running.process.wait()
    assert (served.folder / "runs/mine/holder.json").exists()
    gate.touch()
    ended = served.sweep("resume", "mine", environment=environment)
    assert "As --lock none says" in ended.out
    assert [result["score"] for result in served.results("runs/mine")] == [1.0]
    config = orjson.loads((served.folder / "runs/mine/manifest.json").read_bytes())["config"]
    assert config["lock"] == "none"


def test_a_word_that_is_no_kind_of_lock_is_refused(served: "Desk") -> None:
    ended = served.sweep("run", "six", "--agent", "oracle", "--lock", "nfs", status=2)
    assert ended.err == "sweep: --lock nfs: choose file or none.\n"
