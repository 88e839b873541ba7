"""Once more: what failed, what is named; and the dry run that says so before."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.waiting import wait_until

from .conftest import write_scenario

if TYPE_CHECKING:
    from .conftest import Desk, Service

pytestmark = pytest.mark.slow

#: Fails in two scenarios for as long as there is no file `mended` here: in one it crashes, in one it cannot be started.
FLAKY = """
from pathlib import Path

class Flaky:
    def __init__(self, prompt, workspace, scenario):
        self.workspace, self.name = workspace, scenario.name

    def run(self):
        if self.name in ("bee", "cat") and not Path("mended").exists():
            raise SystemExit(3)
        self.workspace.exec("touch done")
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content and its time."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() + str(path.stat().st_mtime_ns).encode() for path in files}


@pytest.fixture
def night(served: "Desk") -> "Desk":
    """Four of six scenarios were run with an agent that fails in two of them; a crash is a failure there."""
    (served.folder / "flaky.py").write_text(FLAKY)
    command = ("run", "six", "--agent", "./flaky.py:Flaky", "--on-agent-failure", "fail", "--include", "[abcd]*")
    served.sweep(*command, "--name", "mine", status=1)
    assert {each["scenario_name"]: each["outcome"] for each in served.results("runs/mine")} == {
        "ant": "scored",
        "bee": "failed",
        "cat": "failed",
        "dog": "scored",
    }
    return served


def test_failures_of_a_class_are_run_again_and_their_evidence_is_kept(night: "Desk", service: "Service") -> None:
    (night.folder / "mended").touch()
    before = {each["scenario_name"]: each for each in night.results("runs/mine")}
    ended = night.sweep("resume", "mine", "--retry", "AgentCrashed")
    assert "Resuming mine: 4 trials, 2 to do." in ended.out
    reopened = night.journal("runs/mine", "trial.reopened")
    assert sorted(each["trial"] for each in reopened) == sorted(
        f"{before[name]['scenario']}/Flaky/1" for name in ("bee", "cat")
    )
    after = {each["scenario_name"]: each for each in night.results("runs/mine")}
    assert {each["score"] for each in after.values()} == {1.0}
    assert len(night.results("runs/mine")) == 4, "each trial's latest result only"
    assert [after[name] for name in ("ant", "dog")] == [before[name] for name in ("ant", "dog")]
    for name in ("bee", "cat"):
        was, now = (next(iter(each[name]["files"].values())) for each in (before, after))
        assert "attempt-1" in was
        assert "attempt-2" in now
        assert all((night.folder / "runs/mine" / path).exists() for path in (was, now))
    assert len(night.journal("runs/mine", "trial.finished")) == 6, "earlier results stay in the journal"
    assert not service.alive()


def test_the_same_command_with_retry_finds_the_finished_sweep(night: "Desk") -> None:
    command = ("run", "six", "--agent", "./flaky.py:Flaky", "--on-agent-failure", "fail", "--include", "[abcd]*")
    assert "Resuming mine: 4 trials, 2 to do." in night.sweep(*command, "--retry", "AgentError", status=1).out
    assert "mine" not in night.sweep(*command, "--dry-run").out


def test_only_chosen_trials_run_and_the_others_stay_pending(night: "Desk") -> None:
    (night.folder / "mended").touch()
    ended = night.sweep("resume", "mine", "--include", "*", "--only", "failed")
    assert "Of these 2 run now" in ended.out
    assert "2 of 6 trials are left" in night.sweep("attach", "mine").out, "and its exit code is the sweep's"
    assert len(night.results("runs/mine")) == 4
    ended = night.sweep("resume", "mine", "--only", "eel,ant")
    assert len(night.results("runs/mine")) == 5
    ants = [each for each in night.journal("runs/mine", "trial.finished") if each["result"]["scenario_name"] == "ant"]
    assert len(ants) == 2
    assert "Resuming mine: 6 trials, 1 to do." in night.sweep("resume").out
    assert {each["score"] for each in night.results("runs/mine")} == {1.0}


def test_a_wish_with_a_typo_changes_nothing(night: "Desk") -> None:
    before = contents(night.folder / "runs")
    assert "Did you mean AgentCrashed" in night.refused("resume", "mine", "--retry", "AgentCrash")
    assert "Did you mean cat" in night.refused("resume", "mine", "--only", "catt")
    assert contents(night.folder / "runs") == before


def test_a_dry_run_says_what_would_run_and_why_and_leaves_no_trace(night: "Desk", service: "Service") -> None:
    before, runs = contents(night.folder / "runs"), service.benchmark_runs()
    ended = night.sweep("resume", "mine", "--include", "[abcde]*", "--retry", "AgentCrashed", "--dry-run")
    assert "This would continue mine (runs/mine): 3 of 5 trials to run." in ended.out
    assert "run again     2  failed with AgentCrashed: matches --retry: bee, cat" in ended.out
    assert "run     1  never begun: eel" in ended.out
    assert "keep     2  scored: ant, dog" in ended.out
    lines = night.sweep("resume", "mine", "--retry", "AgentCrashed", "--dry-run", "--json").json
    assert lines[0]["counts"] == {"run again": 2, "take up": 0, "run": 0, "leave": 0, "keep": 2}
    assert {line["scenario_name"]: line["fate"] for line in lines[1:]} == {
        "ant": "keep",
        "bee": "run again",
        "cat": "run again",
        "dog": "keep",
    }
    assert contents(night.folder / "runs") == before
    assert service.benchmark_runs() == runs
    assert not list(night.folder.glob("runs/.service/*"))


def test_a_dry_run_of_a_new_sweep_prints_the_plan_and_starts_no_service(desk: "Desk") -> None:
    """Read from the folders as the service would: a mistake is found, too."""
    for name in ("one", "two", "three"):
        write_scenario(desk.folder / "bench" / name)
    command = ("run", "./bench", "--agent", "oracle", "--agent", "nop", "--trials", "2", "--dry-run")
    ended = desk.sweep(*command, "--devboxes", "3", "--timeout-boot", "11")
    assert "This would be a new sweep: 12 of 12 trials to run." in ended.out
    for words in ("3 scenarios x 2 arms x 2 trials", "oracle, nop", "devboxes 3", "boot 11 s", "solve 60 s"):
        assert words in ended.out
    assert "Did you mean three" in desk.refused(*command, "--include", "thre")
    assert "use at most" in desk.refused(*command, "--devboxes", "100000000")
    assert not (desk.folder / "runs").exists()
    assert not desk.processes()

    same = ("run", "./bench", "--agent", "oracle", "--limit", "1", "--name", "mine")
    desk.sweep(*same)
    assert "keep     1  scored: one" in desk.sweep(*same, "--dry-run").out, "what is read is what was served"


def test_a_dry_run_beside_a_running_sweep_says_who_runs_it(served: "Desk") -> None:
    command = ("run", "six", "--agent", "command:exec sleep 31536044", "--limit", "2", "--devboxes", "1")
    first = served.start(*command, "--name", "mine")
    wait_until(lambda: served.journal("runs/mine", "execution.started"), first)
    ended = served.sweep("resume", "--dry-run")
    assert f"in use by process {first.process.pid} " in ended.out
    assert "take up     1  in flight: solve: ant" in ended.out
    first.kill()
    head = orjson.loads(served.sweep("resume", "--dry-run", "--json").out.splitlines()[0])
    facts: dict[str, Any] = {"in_use_by": None, "trials": 2}
    assert facts.items() <= head.items()
    served.sweep("reap", "--yes")
