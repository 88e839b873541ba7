"""Sweeps that are cut short: by Ctrl-C, by Ctrl-C again, by a kill; and what the same command does afterwards."""

import secrets
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import carrying
from tests.waiting import wait_until

if TYPE_CHECKING:
    from .conftest import Desk, Service

# Agents are told from those of other tests by their arguments: these share them.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("interruptions")]

#: Solves the scenario, slowly enough to be caught at it.
SLOW = "command:sleep 1; touch done"
#: Works on this machine and in the devbox at once, for as long as FOREVER says, until there is a file `go` here.
PATIENT = """
from pathlib import Path

class Patient:
    def __init__(self, prompt, workspace):
        self.workspace = workspace

    def run(self):
        if not Path("go").exists():
            self.workspace.exec("exec sleep FOREVER")
        self.workspace.exec("touch done")
"""


@pytest.fixture
def forever() -> str:
    """A year and some seconds, another number in each test: nobody else's agents are taken for a test's own."""
    return str(31_536_000 + secrets.randbelow(30_000_000))


def sleeping(seconds: str) -> list[int]:
    """Agents that sleep for so long, as the machine sees them; the commands that started them name them too."""
    return [pid for pid, words in carrying(f"sleep\0{seconds}").items() if "orchestrator" not in words]


def keys(results: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(result["scenario_name"], result["arm"], result["trial"]) for result in results]


def test_a_killed_sweep_continues_where_it_was(served: "Desk", service: "Service") -> None:
    """No result is lost or made twice, only what is owed is run, nothing stays alive on the endpoint."""
    command = ("run", "six", "--agent", SLOW, "--devboxes", "2")
    first = served.start(*command)
    first.wait_for("[2/6]")
    first.kill()
    (run,) = [path.name for path in (served.folder / "runs").iterdir()]
    kept = (served.folder / "runs" / run / "results.jsonl").read_bytes()
    done = kept.count(b"\n")
    assert 2 <= done < 6
    assert service.alive(), "killed in the middle of something"

    second = served.sweep(*command)
    assert second.out.startswith(f"Resuming {run}: 6 trials, {6 - done} to do."), str(second)
    results = served.results(f"runs/{run}")
    assert (served.folder / "runs" / run / "results.jsonl").read_bytes().startswith(kept)
    assert len(results) == len(set(keys(results))) == 6
    assert {(result["outcome"], result["score"]) for result in results} == {("scored", 1.0)}
    assert not service.alive()

    finished = [event["trial"] for event in served.journal(f"runs/{run}", "trial.finished")]
    executed = [event["trial"] for event in served.journal(f"runs/{run}", "execution.started")]
    assert len(finished) == len(set(finished)) == 6
    assert len(executed) == len(set(executed)) == 6, "no agent is run twice"


def test_a_second_process_with_the_same_name_learns_the_holder(served: "Desk", forever: str) -> None:
    command = ("run", "six", "--agent", f"command:exec sleep {forever}", "--limit", "1", "--name", "mine")
    first = served.start(*command)
    first.wait_for("Starting mine")
    line = served.refused(*command)
    assert "runs/mine is in use" in line
    assert f"process {first.process.pid} " in line
    first.interrupt()
    first.wait_for("Press Ctrl-C again")
    first.interrupt()
    assert first.end().status == 130
    wait_until(lambda: not sleeping(forever), lambda: f"agents outlived their sweep: {sleeping(forever)}", seconds=5)


def test_ctrl_c_lets_those_in_flight_finish_and_starts_no_more(served: "Desk", service: "Service") -> None:
    command = ("run", "six", "--agent", SLOW, "--devboxes", "2", "--name", "mine")
    running = served.start(*command)
    running.wait_for("[1/6]")
    running.interrupt()
    ended = running.end()
    assert ended.status == 130, str(ended)
    assert "Stopping" in ended.out
    assert not service.alive()
    entered = {event["trial"] for event in served.journal("runs/mine", "stage.entered")}
    finished = {event["trial"] for event in served.journal("runs/mine", "trial.finished")}
    assert entered == finished
    assert 1 <= len(finished) < 6
    assert not served.journal("runs/mine", "attempt.ended")
    assert served.journal("runs/mine")[-1]["reason"] == "interrupted: SIGINT"
    assert all(result["score"] == 1.0 for result in served.results("runs/mine"))

    assert f"Resuming mine: 6 trials, {6 - len(finished)} to do." in served.sweep(*command).out
    assert len(set(keys(served.results("runs/mine")))) == 6


def test_ctrl_c_when_nothing_is_pending_is_a_full_run(served: "Desk") -> None:
    running = served.start("run", "six", "--agent", SLOW, "--limit", "2", "--name", "mine")
    wait_until(lambda: len(served.journal("runs/mine", "execution.started")) == 2, running)
    running.interrupt()
    assert running.end().status == 0
    assert len(served.results("runs/mine")) == 2


@pytest.mark.parametrize("agent", ["./patient.py:Patient", "command:exec sleep FOREVER"])
def test_ctrl_c_twice_ends_the_agents_and_releases_the_devboxes(
    served: "Desk", service: "Service", agent: str, forever: str
) -> None:
    """Within ten seconds, whether they work here or in their devboxes; the interrupted trials have not failed."""
    (served.folder / "patient.py").write_text(PATIENT.replace("FOREVER", forever))
    named = agent.replace("FOREVER", forever)
    command = ("run", "six", "--agent", named, "--devboxes", "2", "--limit", "3", "--name", "mine")
    running = served.start(*command)
    running.wait_for("Starting mine")
    wait_until(lambda: len(sleeping(forever)) >= 2, running)
    running.interrupt()
    running.wait_for("Press Ctrl-C again")
    running.interrupt()
    began = time.monotonic()
    ended = running.end()
    assert time.monotonic() - began < 10
    assert ended.status == 130, str(ended)
    assert not service.alive()
    wait_until(lambda: not sleeping(forever), lambda: f"agents outlived their sweep: {sleeping(forever)}", seconds=5)
    wait_until(lambda: not served.processes(), lambda: f"left behind: {served.processes()}", seconds=5)
    assert served.results("runs/mine") == []
    ends = served.journal("runs/mine", "attempt.ended")
    assert [(end["failure"]["class"], end["counted"]) for end in ends] == [("Interrupted", False)] * 2

    if "Patient" in agent:
        (served.folder / "go").touch()
        assert "Resuming mine: 3 trials, 3 to do." in served.sweep(*command).out
        results = served.results("runs/mine")
        assert [(result["outcome"], result["score"]) for result in results] == [("scored", 1.0)] * 3
        assert sorted(len(result["attempts"]) for result in results) == [1, 2, 2]


def test_an_agent_in_its_devbox_works_on_while_nobody_looks(desk: "Desk") -> None:
    """The started service outlives a killed sweep, and the next one waits for the agents instead of running them."""
    command = ("run", "bugfix-mini", "--agent", "command:echo asleep; sleep 5; echo awake", "--limit", "2")
    first = desk.start(*command, "--name", "mine")
    wait_until(lambda: len(desk.journal("runs/mine", "execution.started")) == 2, first)
    first.kill()
    (address,) = desk.folder.glob("runs/.service/*/address.json")
    before = address.read_bytes()
    second = desk.sweep(*command, "--name", "mine")
    assert "Resuming mine: 2 trials, 2 to do." in second.out
    assert address.read_bytes() == before
    assert len(desk.journal("runs/mine", "execution.started")) == 2
    for result in desk.results("runs/mine"):
        assert desk.log("runs/mine", result) == "asleep\nawake\n"


def test_ctrl_c_ends_a_single_scenario_and_releases_its_devbox(
    served: "Desk", service: "Service", forever: str
) -> None:
    running = served.start("scenario", "run", "ant", "--benchmark", "six", "--agent", f"command:exec sleep {forever}")
    wait_until(lambda: sleeping(forever), running)
    running.interrupt()
    ended = running.end(20)
    assert ended.status == 130, str(ended)
    assert not service.alive()
    wait_until(lambda: not sleeping(forever), lambda: f"agents outlived their run: {sleeping(forever)}", seconds=5)
