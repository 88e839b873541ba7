"""`sweep resume`: everything comes from the folder, what may change changes, what may not is refused by name."""

import os
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from .conftest import KEY, write_scenario

if TYPE_CHECKING:
    from .conftest import Desk, Running, Service

pytestmark = pytest.mark.slow

SLOW = "command:sleep 1; touch done"


def manifest(desk: "Desk", name: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((desk.folder / "runs" / name / "manifest.json").read_bytes())
    return found


def cut_short(desk: "Desk", *words: str, after: str = "[1/") -> "Running":
    """Start a sweep and kill it when it has said this."""
    running = desk.start(*words)
    running.wait_for(after)
    running.kill()
    return running


def test_the_newest_unfinished_sweep_is_resumed_as_it_was(served: "Desk", service: "Service") -> None:
    """No option is repeated: benchmark, agent, selection, limits and endpoint come from the folder."""
    served.sweep("run", "six", "--agent", "oracle", "--limit", "1", "--name", "done")
    command = ("run", "six", "--agent", SLOW, "--exclude", "ant", "--devboxes", "2", "--timeout-gather", "77")
    cut_short(served, *command, "--name", "mine")
    before = manifest(served, "mine")
    ended = served.sweep("resume", environment={"RUNLOOP_BASE_URL": ""})
    assert "Resuming mine: 5 trials, " in ended.out, str(ended)
    assert manifest(served, "mine") == before
    assert before["config"]["endpoint"] == service.url
    assert before["config"]["timeouts"]["gather"] == 77
    assert len(served.results("runs/mine")) == 5
    assert not service.alive()
    assert "no unfinished sweep" in served.refused("resume")


def test_a_finished_sweep_prints_its_summary_and_starts_nothing(desk: "Desk") -> None:
    """With the exit code that its results deserve, and without asking any endpoint."""
    write_scenario(desk.folder / "bench" / "good")
    write_scenario(desk.folder / "bench" / "worse", test="echo 1.7 >/logs/verifier/reward.txt\n")
    first = desk.sweep("run", "./bench", "--agent", "oracle", "--name", "mine", status=1)
    before = (desk.folder / "runs/mine/journal.jsonl").read_bytes()
    ended = desk.sweep("resume", "mine", status=1)
    assert ended.out.splitlines()[0] == "mine is not running: 2 trials, 0 to do."
    assert ended.out.splitlines()[1:] == first.out[first.out.index("arm ") :].splitlines()
    (line,) = desk.sweep("resume", "mine", "--json", status=1).json
    assert (line["event"], line["arms"][0]["scored"]) == ("sweep", 1)
    assert (desk.folder / "runs/mine/journal.jsonl").read_bytes() == before


def test_limits_timeouts_and_selection_may_change_on_resume(served: "Desk") -> None:
    """Limits, timeouts, more trials, more scenarios; what was done stays done."""
    served.sweep("run", "six", "--agent", "oracle", "--include", "a*", "--name", "mine")
    kept = (served.folder / "runs/mine/results.jsonl").read_bytes()
    more = ("--include", "[ab]*", "--trials", "2", "--devboxes", "3", "--attempts", "5", "--timeout-solve", "50")
    assert "Resuming mine: 4 trials, 3 to do." in served.sweep("resume", "mine", *more).out
    assert (served.folder / "runs/mine/results.jsonl").read_bytes().startswith(kept)
    results = served.results("runs/mine")
    assert sorted((each["scenario_name"], each["trial"]) for each in results) == [
        ("ant", 1),
        ("ant", 2),
        ("bee", 1),
        ("bee", 2),
    ]
    config = manifest(served, "mine")["config"]
    assert (config["devboxes"], config["attempts"], config["timeouts"]["solve"]) == (3, 5, 50)


def test_options_that_would_mix_two_kinds_of_results_are_refused_by_name(served: "Desk") -> None:
    served.sweep("run", "six", "--agent", "oracle", "--limit", "1", "--name", "mine")
    before = manifest(served, "mine")
    same = ("run", "six", "--name", "mine", "--limit", "1")
    assert "--scoring is part of what a sweep is" in served.refused("resume", "mine", "--scoring", "live")
    assert 'on_agent_failure was "score" and is now "fail"' in served.refused(
        *same, "--agent", "oracle", "--on-agent-failure", "fail"
    )
    assert "arms.nop has changed; arms.oracle has changed" in served.refused(*same, "--agent", "nop")
    assert manifest(served, "mine") == before
    for option in ("--agent", "--model", "--on-agent-failure"):
        assert option in served.sweep("resume", "mine", option, "x", status=2).err
    assert "--devboxes 0: must be at least 1" in served.refused("resume", "mine", "--devboxes", "0")


def test_another_endpoint_than_the_sweeps_is_refused_and_both_are_named(served: "Desk", service: "Service") -> None:
    """Before a key goes there: where nobody listens, nothing is waited for."""
    served.sweep("run", "six", "--agent", "oracle", "--limit", "1", "--name", "mine")
    other = "http://127.0.0.1:9"
    for command in (
        ("resume", "mine", "--trials", "2"),
        ("run", "six", "--agent", "oracle", "--limit", "1", "--name", "mine"),
    ):
        line = served.refused(*command, "--endpoint", other)
        assert f"runs/mine runs on {service.url}" in line
        assert other in line


def test_a_sweep_on_the_embedded_service_is_not_resumed_elsewhere(desk: "Desk", service: "Service") -> None:
    desk.sweep("run", "bugfix-mini", "--agent", "oracle", "--limit", "1", "--name", "mine")
    key = {"RUNLOOP_API_KEY": KEY}
    line = desk.refused("resume", "mine", "--trials", "2", "--endpoint", service.url, environment=key)
    assert "runs on the embedded service" in line
    assert service.url in line


def test_a_sweep_can_be_resumed_from_any_folder(desk: "Desk") -> None:
    """Its benchmark and its agent were given relative to where it was started."""
    write_scenario(desk.folder / "bench" / "one")
    write_scenario(desk.folder / "bench" / "two")
    (desk.folder / "mine.py").write_text(
        "import time\n\nclass Mine:\n    def __init__(self, prompt, workspace):\n        self.workspace = workspace\n\n"
        "    def run(self):\n        time.sleep(0.5)\n        self.workspace.exec('touch done')\n"
    )
    cut_short(desk, "run", "./bench", "--agent", "./mine.py:Mine", "--name", "mine", "--devboxes", "1")
    home = desk.folder
    desk.folder = home.parent
    try:
        ended = desk.sweep("resume", os.fspath(home / "runs" / "mine"))
    finally:
        desk.folder = home
    assert "Resuming mine: 2 trials, 1 to do." in ended.out
    assert [result["score"] for result in desk.results("runs/mine")] == [1.0, 1.0]


def test_a_sweep_in_use_is_said_with_its_process(served: "Desk") -> None:
    first = served.start("run", "six", "--agent", "command:exec sleep 31536045", "--limit", "1", "--name", "mine")
    first.wait_for("Starting mine")
    line = served.refused("resume")
    assert f"runs/mine is in use by process {first.process.pid} " in line
    served.sweep("stop", "--now")
    assert first.end().status == 130
