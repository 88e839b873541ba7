"""Benchmarks of which some scenarios cannot run: they cost nobody else anything, and everybody is told."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import CLOSED, write_scenario

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = pytest.mark.slow
ORACLE = ("--agent", "oracle", "--name", "mine")
GPUS = "task.toml: environment.gpus: devboxes have none: leave it out, or run the task elsewhere"


def write_bench(folder: Path) -> Path:
    """Two scenarios that run, one that asks for too much, one that cannot be built and one that cannot be read."""
    for name in ("ant", "fox"):
        write_scenario(folder / name)
    write_scenario(folder / "bee", task=f"{CLOSED}gpus = 1\n")
    (write_scenario(folder / "cat") / "environment/Dockerfile").write_text("FROM debian:12\nCOPY none /x\n")
    (write_scenario(folder / "dog") / "task.toml").write_text("[agent\n")
    return folder


def test_scenarios_that_cannot_run_are_one_failed_trial_each_and_stop_nothing(desk: "Desk") -> None:
    write_bench(desk.folder / "mine")
    ended = desk.sweep("run", "./mine", *ORACLE, "--same-failures", "1", "--max-failures", "1", status=1)
    results = {result["scenario_name"]: result for result in desk.results("runs/mine")}
    assert {name: result["score"] for name, result in results.items() if result["outcome"] == "scored"} == {
        "ant": 1.0,
        "fox": 1.0,
    }
    failures = {name: results[name]["failure"] for name in ("bee", "cat", "dog")}
    assert {failure["class"] for failure in failures.values()} == {"Unsupported"}
    assert failures["bee"] == {"class": "Unsupported", "message": GPUS, "stage": "start"}
    assert failures["cat"]["message"].startswith("environment/Dockerfile: line 2: COPY: none is not in the context")
    assert failures["dog"]["message"].startswith("task.toml: is not TOML")
    assert [results[name]["attempts"] for name in failures] == [[], [], []]
    assert not [event for event in desk.journal("runs/mine", "stage.entered") if "bee" in event["trial"]]
    assert "3 of 5 scenarios cannot run here" in ended.out
    assert f"  bee: {GPUS}" in ended.out
    assert desk.refused("logs", "mine", "bee") == f"sweep: bee cannot run here: {GPUS}."


def test_a_resume_leaves_unsupported_scenarios_and_a_retry_runs_fixed_ones(desk: "Desk") -> None:
    folder = write_bench(desk.folder / "mine")
    desk.sweep("run", "./mine", *ORACLE, status=1)
    before = desk.results("runs/mine")
    desk.sweep("resume", "mine", status=1)
    assert desk.results("runs/mine") == before

    task = folder / "bee/task.toml"
    task.write_text(task.read_text().replace("gpus = 1", "gpus = 0"))
    desk.sweep("resume", "mine", "--retry", "Unsupported", status=1)
    after = {result["scenario_name"]: result for result in desk.results("runs/mine")}
    assert (after["bee"]["score"], len(after["bee"]["attempts"])) == (1.0, 1)
    assert [after[name]["failure"]["class"] for name in ("cat", "dog")] == ["Unsupported"] * 2
    assert {name: after[name]["score"] for name in ("ant", "fox")} == {"ant": 1.0, "fox": 1.0}


def test_unsupported_scenarios_can_be_left_out_and_are_named(desk: "Desk") -> None:
    write_bench(desk.folder / "mine")
    ended = desk.sweep("run", "./mine", *ORACLE, "--skip-unsupported", "--limit", "2")
    assert [result["scenario_name"] for result in desk.results("runs/mine")] in (["ant", "fox"], ["fox", "ant"])
    assert "--skip-unsupported leaves out 3 scenarios:" in ended.out
    manifest = desk.manifest("runs/mine")
    assert manifest["skipped_unsupported"].keys() == {"bee", "cat", "dog"}
    assert manifest["skipped_unsupported"]["bee"] == GPUS
    line = desk.refused("run", "./mine", "--agent", "nop", "--skip-unsupported", "--include", "bee")
    assert GPUS in line


def test_an_excluded_scenario_is_not_read_and_no_mistake(desk: "Desk") -> None:
    """A pipe would keep its reader waiting; a folder without rights cannot be read."""
    write_bench(desk.folder / "mine")
    for number in range(20):
        os.mkfifo(write_scenario(desk.folder / f"mine/odd-{number}") / "tests/pipe")
    ended = desk.sweep("run", "./mine", *ORACLE, "--exclude", "[bcdo]*")
    assert len(desk.results("runs/mine")) == 2
    assert "cannot run" not in ended.out
    assert desk.manifest("runs/mine")["scenarios"].keys() == {r["scenario"] for r in desk.results("runs/mine")}


def test_ignored_keys_are_reported_once_for_all_scenarios_and_kept(desk: "Desk") -> None:
    for name in ("ant", "bee"):
        write_scenario(desk.folder / "mine" / name, task=f'{CLOSED}odd = "/skills"\n')
    ended = desk.sweep("run", "./mine", *ORACLE)
    note = "task.toml: environment.odd: unknown key, ignored"
    assert ended.out.count(note) == 1
    assert f"2 of 2 scenarios, {note}: ant, bee" in ended.out
    assert [each["notes"] for each in desk.manifest("runs/mine")["scenarios"].values()] == [[note]] * 2


def test_what_an_agent_cannot_take_is_refused_before_the_start_by_scenario_and_agent(desk: "Desk") -> None:
    server = '[[environment.mcp_servers]]\nname = "far"\nurl = "http://x/sse"\n'
    write_scenario(desk.folder / "mine/ant", task=server)
    write_scenario(desk.folder / "mine/bee", task='[environment]\nskills_dir = "/s"\n')
    (write_scenario(desk.folder / "mine/cat") / "trajectory.json").write_text("{}")
    write_scenario(desk.folder / "mine/dog")
    (desk.folder / "plain.toml").write_text("run = 'touch /app/done'\n")
    (desk.folder / "plain.py").write_text(
        "def takes(workspace, skills_dir=''):\n    assert skills_dir in ('', '/s')\n    workspace.write('done', 'x')\n"
    )
    for words in (("run", "./mine", "--dry-run"), ("run", "./mine")):
        ended = desk.sweep(*words, "--agent", "./plain.toml", status=2)
        assert "3 of 4 scenarios give something that an agent does not take" in ended.err
        assert "  ant: agent plain does not take the MCP server far (sse)" in ended.err
        assert "  bee: agent plain does not take skills" in ended.err
        assert "  cat: agent plain does not take a trajectory to start from" in ended.err
    assert list((desk.folder / "runs").glob("*/manifest.json")) == []

    agents = ("--agent", "./plain.toml", "--agent", "./plain.py:takes", "--agent", "oracle")
    desk.sweep("run", "./mine", *agents, "--name", "some", "--skip-unsupported")
    assert [result["score"] for result in desk.results("runs/some")] == [1.0, 1.0, 1.0]
    desk.sweep("run", "./mine", "--include", "bee", "--agent", "./plain.py:takes", "--name", "bees")
    assert [result["score"] for result in desk.results("runs/bees")] == [1.0]
    desk.sweep("run", "./mine", "--agent", "oracle", "--agent", "nop", "--name", "all")
    assert sum(result["score"] for result in desk.results("runs/all")) == 4.0


def test_a_folder_that_is_not_as_it_should_be_costs_itself_alone_and_little_time(desk: "Desk") -> None:
    """Each of them alone cost seconds, or the whole benchmark, once."""
    bench = desk.folder / "mine"
    write_scenario(bench / "good")
    write_scenario(bench / "latin")
    (bench / os.fsdecode(b"latin/environment/caf\xe9")).write_text("x")
    with (write_scenario(bench / "sparse") / "tests/large").open("wb") as file:
        file.truncate(5 << 30)
    (write_scenario(bench / "keys") / "task.toml").write_text("".join(f"k{n} = 1\n" for n in range(300_000)))
    (write_scenario(bench / "nested") / "task.toml").write_text(f"x = {'[' * 200_000}")
    write_scenario(bench / os.fsdecode(b"caf\xe9"))
    started = time.monotonic()
    checked = desk.sweep("check", "./mine", "--static", status=1)
    assert time.monotonic() - started < 10
    assert len([line for line in checked.out.splitlines() if line.startswith("error: ")]) == 5
    ended = desk.sweep("run", "./mine", *ORACLE, status=1)
    results = {result["scenario_name"]: result for result in desk.results("runs/mine")}
    assert results.pop("good")["score"] == 1.0
    assert {result["failure"]["class"] for result in results.values()} == {"Unsupported"}
    assert results["latin"]["failure"]["message"] == (
        "environment/caf\\xe9: has a name that is not UTF-8: give it another"
    )
    assert results["sparse"]["failure"]["message"].startswith("tests/: has 5,120 MiB (large: 5,120)")
    assert "5 of 6 scenarios cannot run here" in ended.out
