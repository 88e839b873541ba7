"""Finished trials are scored again over the work that was kept; their agents do not run."""

from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import wait_until

from .conftest import PATIENCE, reward, write_scenario
from .test_steps import steps, write_steps

if TYPE_CHECKING:
    from .conftest import Desk

#: Leaves text, a program, bytes that are no text, and a file less; says how often it ran, and what it cost.
AGENT = """
run = '''
echo 1 >done; printf '\\0\\377' >bytes; echo '#!/bin/sh' >tool; chmod +x tool; rm README
echo '{"type": "result", "cost": 2}'
'''
[usage]
format = "jsonl"
cost_usd = "$[?@.type=='result'].cost"
"""
#: What is there at the end of each step.
WORK = {"one": "x", "two": "x\nx"}
IS_RIGHT = """[ -x tool ] && [ ! -e README ] && [ "$(od -An -tx1 bytes | tr -d ' ')" = 00ff ]"""


def only(desk: "Desk", name: str = "mine") -> dict[str, Any]:
    (result,) = desk.results(f"runs/{name}")
    return result


def mend(desk: "Desk", test: str, folder: str = "bench") -> None:
    (desk.folder / folder / "task/tests/test.sh").write_text(test)


def begin(desk: "Desk", test: str, *words: str, status: int = 0) -> dict[str, Any]:
    write_scenario(desk.folder / "bench/task", test=test)
    (desk.folder / "worker.toml").write_text(AGENT)
    desk.sweep("run", "bench", "--agent", "worker.toml", "--name", "mine", *words, status=status)
    return only(desk)


def test_a_mended_scorer_judges_the_same_work_and_what_it_cost_stays(desk: "Desk") -> None:
    """The work is the same to the byte; the journal has the old score; the cost is counted once."""
    before = begin(desk, reward("false"))
    write_scenario(desk.folder / "newer/bench/task", test=reward(IS_RIGHT))
    said = desk.sweep("rescore", "mine", "--benchmark", "newer/bench")
    after = only(desk)
    assert "task: 0.000 -> 1.000" in said.out
    assert (before["score"], after["score"], after["flags"]) == (0.0, 1.0, [])
    assert after["rescored"] == {"score": 0.0, "finished": before["finished"]}
    for same in ("usage", "exit_status", "started", "version"):
        assert after[same] == before[same], same
    assert after["files"]["agent_log"] == before["files"]["agent_log"]
    assert after["stages"]["solve"] == before["stages"]["solve"]
    scores = [event["result"]["score"] for event in desk.journal("runs/mine", "trial.finished")]
    assert scores == [0.0, 1.0]
    assert desk.sweep("attach", "mine", "--json").json[-1]["arms"][0]["cost"] == 2
    assert "1 trial, 0 to do" in desk.sweep("resume", "mine").out
    last = desk.sweep("rescore", "mine", "--json").json[-1]
    assert (last["event"], last["score"], last["score_before"]) == ("rescored", 1.0, 1.0)


def test_a_trial_that_failed_by_its_scorer_gets_its_score(desk: "Desk") -> None:
    begin(desk, "exit 3\n", "--scorings", "1", status=1)
    assert only(desk)["failure"]["class"] == "ScoringFault"
    (desk.folder / "good").mkdir()
    (desk.folder / "bench").rename(desk.folder / "good/bench")
    mend(desk, reward(IS_RIGHT), "good/bench")
    assert "no score -> 1.000" in desk.sweep("rescore", "mine", "--benchmark", "good/bench").out
    assert (only(desk)["outcome"], only(desk)["failure"]) == ("scored", None)


def test_work_that_cannot_be_put_back_keeps_its_score(desk: "Desk") -> None:
    """So does a trial whose patch is not whole, which is named before anything starts."""
    before = begin(desk, reward("test -e done"))
    patch = desk.folder / "runs/mine" / before["files"]["patch"]
    whole = patch.read_bytes()
    patch.write_bytes(whole.replace(b"A folder in which", b"Another in which"))
    said = desk.sweep("rescore", "mine", status=1)
    assert "could not be scored again, and keeps 1.000" in said.out
    after = only(desk)
    assert after == {**before, "flags": ["rescore_failed"]}
    patch.unlink()
    assert "task: its patch is gone" in desk.refused("rescore", "mine")
    assert only(desk) == after


def test_what_there_is_not_to_score_is_said(desk: "Desk") -> None:
    begin(desk, reward("true"))
    assert "--only 'ask' matches no scenario. Did you mean task?" in desk.refused("rescore", "mine", "--only", "ask")
    assert "There is no sweep 'yours'" in desk.refused("rescore", "yours")
    write_scenario(desk.folder / "other/task")
    assert "benchmark was" in desk.refused("rescore", "mine", "--benchmark", "other")


def test_a_newer_benchmark_has_the_same_scenarios_or_is_refused(desk: "Desk") -> None:
    """No result leaves the sweep's plan by it, and no scenario comes in, for an agent to be paid on later."""
    for name in ("task", "other"):
        write_scenario(desk.folder / "bench" / name, test=reward("false"))
    for name in ("task", "another"):
        write_scenario(desk.folder / "newer/bench" / name, test=reward("true"))
    desk.sweep("run", "bench", "--agent", "nop", "--name", "mine")
    before = desk.results("runs/mine")
    said = desk.refused("rescore", "mine", "--only", "task", "--benchmark", "newer/bench")
    assert "it lacks other; another is new. Give one that has the same, by name" in said
    assert desk.results("runs/mine") == before


def test_a_score_stays_when_its_rescoring_is_canceled(desk: "Desk") -> None:
    begin(desk, reward("true"))
    write_scenario(desk.folder / "slow/bench/task", test=f"sleep 60\n{reward('false')}")
    running = desk.start("rescore", "mine", "--benchmark", "slow/bench")
    wait_until(lambda: desk.journal("runs/mine", "trial.reopened"), running, seconds=PATIENCE)
    desk.sweep("cancel", "mine", "task")
    ended = running.end()
    assert "task: could not be scored again, and keeps 1.000: canceled by" in ended.out
    assert (only(desk)["score"], only(desk)["flags"]) == (1.0, ["rescore_failed"])


def test_the_environments_own_git_changes_nothing_of_the_work(desk: "Desk") -> None:
    """Not where it is a repository with settings and attributes, nor above the working directory."""
    folder = write_scenario(
        desk.folder / "bench/task", test=reward('[ "$(od -An -c text | tr -d " ")" = "x\\\\r\\\\n" ]')
    )
    setup = "git init -q /app; git -C /app config core.autocrlf true; mkdir -p sub; echo '* eol=crlf' >.gitattributes\n"
    (folder / "environment/setup.sh").write_text(f"cd /app\n{setup}")
    (folder / "task.toml").write_text('version = "1.0"\n[environment]\nworkdir = "/app/sub"\nallow_internet = false\n')
    desk.sweep("run", "bench", "--agent", "command:printf 'x\\r\\n' >text; echo y >two", "--name", "mine")
    assert only(desk)["score"] == 1.0
    desk.sweep("rescore", "mine")
    assert (only(desk)["score"], only(desk)["flags"]) == (1.0, [])


def test_steps_are_scored_again_with_the_work_of_each(desk: "Desk") -> None:
    """Each step finds what was done in those before it, and no step follows that was not begun then."""
    task, test = steps("one", "two", more="min_reward = 0.5\n"), reward("false")
    right = {f"steps/{name}/tests/test.sh": reward(f'[ "$(cat work)" = "{seen}" ]') for name, seen in WORK.items()}
    write_steps(desk.folder / "bench/task", task, {**right, "steps/two/tests/test.sh": test})
    write_steps(desk.folder / "bench/other", task, {"tests/test.sh": test})
    for name in ("task", "other"):
        write_steps(desk.folder / "newer/bench" / name, task, right)
    desk.sweep("run", "bench", "--agent", "command:echo x >>work", "--name", "mine")
    before = {result["scenario_name"]: result for result in desk.results("runs/mine")}
    said = desk.sweep("rescore", "mine", "--benchmark", "newer/bench").out
    after = {result["scenario_name"]: result for result in desk.results("runs/mine")}
    assert (before["task"]["score"], after["task"]["score"], after["task"]["flags"]) == (0.5, 1.0, [])
    assert [step["score"] for step in after["task"]["steps"]] == [1.0, 1.0]
    assert "task: 0.500 -> 1.000" in said
    for was, now in zip(before["task"]["steps"], after["task"]["steps"], strict=True):
        assert (was["files"]["patch"], was["stages"]["solve"]) == (now["files"]["patch"], now["stages"]["solve"])
    assert (after["other"]["score"], after["other"]["flags"]) == (0.0, ["rescore_failed"])


@pytest.mark.slow
def test_tests_that_are_mended_after_a_rescoring_was_killed_judge_and_not_those_before(desk: "Desk") -> None:
    begin(desk, reward("false"))
    mend(desk, "sleep 3; echo 0.75 >/logs/verifier/reward.txt\n")
    running = desk.start("rescore", "mine")
    wait_until(lambda: desk.journal("runs/mine", "stage.entered")[-1]["stage"] == "score", running, seconds=PATIENCE)
    running.kill()
    mend(desk, "echo 0.25 >/logs/verifier/reward.txt\n")
    assert "task: 0.000 -> 0.250" in desk.sweep("rescore", "mine").out
    assert (only(desk)["score"], only(desk)["rescored"]["score"]) == (0.25, 0.0)


@pytest.mark.slow
def test_a_rescoring_that_was_killed_goes_on_and_runs_no_agent(desk: "Desk") -> None:
    """All results are there meanwhile, and no key of the agent's is needed."""
    (desk.folder / "worker.toml").write_text(f'{AGENT}\n[env]\nrequired = ["MY_KEY"]\n')
    for name in ("ant", "bee"):
        write_scenario(desk.folder / "bench" / name, test=reward("false"))
        write_scenario(desk.folder / "new/bench" / name, test=f"sleep 2\n{reward(IS_RIGHT)}")
    words = ("run", "bench", "--agent", "worker.toml", "--name", "mine", "--devboxes", "1")
    desk.sweep(*words, environment={"MY_KEY": "a-key-of-the-agent"})
    begun = len(desk.journal("runs/mine"))
    running = desk.start("rescore", "mine", "--benchmark", "new/bench")
    wait_until(
        lambda: any(event.get("stage") == "score" for event in desk.journal("runs/mine")[begun:]),
        running,
        seconds=PATIENCE,
    )
    running.kill()
    assert [result["score"] for result in desk.results("runs/mine")] == [0.0, 0.0]
    assert "2 of 2 trials scored again: 2 scores changed." in desk.sweep("resume", "mine").out
    results = desk.results("runs/mine")
    assert [(each["score"], each["rescored"]["score"], each["usage"]["cost_usd"]) for each in results] == [
        (1, 0, 2)
    ] * 2
