"""Scenarios of several steps: one devbox, and in it one agent after the other, each judged before the next begins."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from starlette.testclient import TestClient

from orchestrator.view.web.site import application
from tests.images.base_images import base_image
from tests.images.packing import PackedImage

from .conftest import reward

if TYPE_CHECKING:
    from .conftest import Desk

TASK = 'version = "1.4"\n[agent]\ntimeout_sec = 60.0\n[environment]\nallow_internet = false\n'
#: Everything that a step may leave for the next one to find, but what is its work.
LOOK = "ls -A /tests /logs/verifier /logs/agent /logs/artifacts 2>&1 | grep -v '^/\\|^$'; ls -A ~/.sweep 2>/dev/null"


def write_steps(folder: Path, task: str, files: Mapping[str, str]) -> None:
    """Write a scenario of these `files`; each step is named in `task`, and has a statement."""
    names = [line.split('"')[1] for line in task.splitlines() if line.startswith("name = ")]
    given = {f"steps/{name}/instruction.md": f"Do {name}.\n" for name in names}
    for path, text in {"task.toml": task, "environment/README": "Work here.\n", **given, **files}.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def steps(*names: str, more: str = "") -> str:
    return TASK + "".join(f'[[steps]]\nname = "{name}"\n{more}' for name in names)


def of(result: Mapping[str, Any], *keys: str) -> list[Any]:
    """These keys of each step."""
    return [tuple(step[key] for key in keys) if keys[1:] else step[keys[0]] for step in result["steps"]]


def run(desk: "Desk", agent: str, *words: str, name: str = "mine") -> dict[str, Any]:
    desk.sweep("run", "bench", "--agent", agent, "--name", name, *words)
    (result,) = desk.results(f"runs/{name}")
    return result


def test_steps_are_done_in_one_devbox_and_each_begins_without_what_judged_the_last(desk: "Desk") -> None:
    """What the agent has done stays; tests, rewards, logs and artifacts do not, nor do its processes."""
    write_steps(
        desk.folder / "bench/two",
        steps("one", "two", more="min_reward = 0.5\n"),
        {
            "steps/one/workdir/setup.sh": "echo $PWD >begun\n",
            "steps/one/tests/test.sh": "echo secret >/tests/found\n" + reward("test -e made"),
            "steps/two/workdir/in/given": "7\n",
            "steps/two/workdir/setup.sh": f"({LOOK}) >left; pgrep sleep >>left; true\n",
            "steps/two/tests/test.sh": (
                'printf \'{"reward": 0.5, "seen": %s}\' "$(wc -c <left)" >/logs/verifier/reward.json\n'
            ),
        },
    )
    work = 'cat "$SWEEP_PROBLEM_FILE" begun in/* made 2>&1; touch made; echo log >/logs/agent/log; setsid sleep 99 &'
    result = run(desk, f"command:{work}")
    assert of(result, "name", "score") == [("one", 1.0), ("two", 0.5)]
    assert (result["score"], result["rewards"]) == (0.75, {"reward": 0.75, "seen": 0.0})
    assert of(result, "processes_left") == [{"sleep": 1}, {"sleep": 1}]
    said = [(desk.folder / "runs/mine" / step["files"]["agent_log"]).read_text() for step in result["steps"]]
    assert said[0].splitlines()[:2] == ["Do one.", "/app"]
    assert said[1].splitlines() == ["Do two.", "/app", "7"]
    assert all("/attempt-1/steps/two/" in path for path in of(result, "files")[1].values())
    assert len(result["attempts"]) == 1
    assert desk.sweep("logs", "mine", "two").out == said[1]
    assert desk.sweep("logs", "mine", "two", "--step", "one").out == said[0]
    assert desk.sweep("logs", "mine", "two", "-f").out == "".join(said)
    assert "no step 'ten': there are one, two" in desk.refused("logs", "mine", "two", "--step", "ten")
    with TestClient(application(desk.folder / "runs", "token", 1), "http://127.0.0.1:1") as browser:
        browser.cookies.set("sweep_view_1", "token")
        place = f"/sweep/mine/trial?scenario={result['scenario']}&arm=command"
        for query in ("", "&step=one", "&step=two"):
            page = browser.get(f"{place}{query}")
            assert (page.status_code, "<h2>Result</h2>" in page.text) == (200, True), query


@pytest.mark.parametrize(("strategy", "score"), [("mean", 0.25), ("final", 0.25)])
def test_no_step_follows_one_with_too_low_a_reward(desk: "Desk", strategy: str, score: float) -> None:
    """What is not begun counts in neither sum."""
    write_steps(
        desk.folder / "bench/two",
        f'multi_step_reward_strategy = "{strategy}"\n' + steps("one", "two", more="min_reward = 0.5\n"),
        {"tests/test.sh": "echo 0.25 >/logs/verifier/reward.txt\n"},
    )
    result = run(desk, "nop")
    assert (of(result, "name"), result["score"], result["outcome"]) == (["one"], score, "scored")


def test_a_separate_scoring_leaves_the_work_where_the_next_step_finds_it(desk: "Desk") -> None:
    write_steps(
        desk.folder / "bench/two",
        steps("one", "two", more='verifier = { environment_mode = "separate" }\n'),
        {"tests/test.sh": "touch /app/spoilt\n" + reward("grep -q x /app/work")},
    )
    result = run(desk, "command:ls >>seen; echo x >work")
    assert of(result, "score", "scoring") == [(1.0, "separate"), (1.0, "separate")]
    patch = (desk.folder / "runs/mine" / result["steps"][1]["files"]["patch"]).read_text()
    assert "+work" in patch
    assert "spoilt" not in patch


def test_links_that_an_agent_leaves_lead_no_cleaning_into_its_work(desk: "Desk") -> None:
    write_steps(desk.folder / "bench/two", steps("one", "two"), {"tests/test.sh": reward("test -e work")})
    links = (
        "rm -rf /logs/agent /logs/artifacts; ln -s /app /logs/artifacts; ln -s /app /logs/agent; ln -s /app ~/.sweep"
    )
    result = run(desk, f"command:touch work; {links}; ls -ld /logs/agent")
    assert of(result, "score") == [1.0, 1.0]


def test_what_stands_in_the_way_of_a_steps_files_gives_way(desk: "Desk") -> None:
    """Else an agent could keep the next step from beginning; the rest of its work stays."""
    files = {"steps/two/workdir/setup.sh": "cp in/given got\n", "steps/two/workdir/in/given": "7\n"}
    write_steps(desk.folder / "bench/two", steps("one", "two"), {"tests/test.sh": reward("test -e kept"), **files})
    result = run(desk, "command:cat got; mkdir -p setup.sh/x in/given/y in/mine; touch kept; ls in")
    assert of(result, "score") == [1.0, 1.0]
    said = (desk.folder / "runs/mine" / result["steps"][1]["files"]["agent_log"]).read_text()
    assert said.startswith("7\n")
    assert "mine" in said


def test_patches_that_are_there_already_are_applied_once_in_all_steps(desk: "Desk") -> None:
    write_steps(desk.folder / "bench/two", steps("one", "two"), {"tests/test.sh": reward("test -e new")})
    patch = "diff --git a/new b/new\nnew file mode 100644\n--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+x\n"
    prediction = {"instance_id": "two", "model_name_or_path": "m", "model_patch": patch}
    (desk.folder / "predictions.jsonl").write_text(f"{orjson.dumps(prediction).decode()}\n")
    assert of(run(desk, "predictions:predictions.jsonl"), "score", "exit_status") == [(1.0, 0), (1.0, 0)]


def test_a_server_of_one_step_is_there_in_the_next(desk: "Desk") -> None:
    """Scorers may ask it, so they run beside it; their tests are gone before the next agent begins."""
    serve = "python3 -m http.server 8123 >/dev/null 2>&1 &"
    ask = "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8123))'"
    until = f"until {ask}; do sleep 0.1; done 2>/dev/null"
    write_steps(
        desk.folder / "bench/two",
        steps("one", "two"),
        {"tests/test.sh": reward(ask)},
    )
    result = run(desk, f"command:{LOOK}; {ask} 2>/dev/null || {{ setsid {serve} {until}; }}")
    assert of(result, "score", "scoring") == [(1.0, "live"), (1.0, "live")]
    assert result["flags"] == ["scored_live"]
    said = (desk.folder / "runs/mine" / result["steps"][1]["files"]["agent_log"]).read_text()
    assert "test.sh" not in said


def test_a_step_without_tests_is_left_out_and_one_whose_setup_fails_is_an_attempt_that_failed(desk: "Desk") -> None:
    files = {"steps/two/tests/test.sh": reward("test -e done")}
    write_steps(desk.folder / "bench/two", steps("one", "two"), files)
    result = run(desk, "nop")
    assert (of(result, "score"), result["score"]) == ([None, 0.0], 0.0)
    files |= {"steps/two/workdir/setup.sh": "exit 3\n"}
    write_steps(desk.folder / "bench/two", steps("one", "two"), files)
    desk.sweep("run", "bench", "--agent", "nop", "--name", "bad", "--attempts", "2", status=1)
    (failed,) = desk.results("runs/bad")
    assert (failed["outcome"], len(failed["attempts"])) == ("failed", 2)
    assert (failed["failure"]["class"], failed["failure"]["stage"]) == ("DevboxFailed", "prepare")
    assert "step two could not begin" in failed["failure"]["message"]
    assert "'setup.sh' exited with 3" in failed["failure"]["message"]
    assert of(failed, "name") == ["one", "two"]


def test_an_agent_that_keeps_the_next_step_from_beginning_has_a_zero_for_it(desk: "Desk") -> None:
    """It can begin without that agent's work, after the steps before it, so nobody else is at fault."""
    files = {
        "tests/test.sh": "echo 1 >/logs/verifier/reward.txt\n",
        "steps/one/workdir/setup.sh": "echo more >>README\n",
        "steps/two/workdir/setup.sh": "grep -q more README\n",
    }
    write_steps(desk.folder / "bench/three", steps("one", "two", "three"), files)
    desk.sweep("run", "bench", "--agent", "command:rm README", "--name", "mine", status=1)  # all of it is flagged
    (result,) = desk.results("runs/mine")
    assert (result["outcome"], of(result, "name", "score")) == ("scored", [("one", 1.0), ("two", 0.0)])
    assert (result["score"], len(result["attempts"])) == (pytest.approx(1 / 3), 1)
    assert "devbox_broken_by_agent" in result["flags"]
    (output,) = [path for name, path in result["steps"][1]["files"].items() if name.startswith("scorer_")]
    assert "'setup.sh' exited with 2" in (desk.folder / "runs/mine" / output).read_text()
    desk.sweep("run", "bench", "--agent", "oracle", "--name", "unsolved", "--attempts", "1", status=1)
    (failed,) = desk.results("runs/unsolved")
    assert "has no steps/one/solution/solve.sh" in failed["failure"]["message"]


def test_oracle_has_the_solution_of_each_step(desk: "Desk") -> None:
    write_steps(
        desk.folder / "bench/two",
        steps("one", "two"),
        {
            **{f"steps/{name}/solution/solve.sh": f"echo {name} >>done\n" for name in ("one", "two")},
            "steps/one/tests/test.sh": reward('test "$(cat done)" = one'),
            "steps/two/tests/test.sh": reward('test "$(cat done)" = "one\ntwo"'),
        },
    )
    desk.sweep("check", "bench")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shared", "separate"])
def test_in_an_image_the_whole_system_is_the_same_in_every_step(desk: "Desk", sandboxes: None, mode: str) -> None:
    """What a root agent installs stays. In a separate scoring only its work is there, and that is there afterwards."""
    PackedImage.of(base_image("busybox")).save(desk.folder / "busybox.tar", "busybox:1")
    desk.sweep("images", "load", "busybox.tar")
    task = steps("one", "two", "three", more=f'verifier = {{ environment_mode = "{mode}" }}\n').replace(
        "[environment]\n", '[environment]\ndocker_image = "busybox:1"\nworkdir = "/work"\n'
    )
    test = 'printf \'{"reward": 1, "system": %s}\' "$(ls /opt | wc -l)" >/logs/verifier/reward.json\n'
    files = {f"steps/{name}/workdir/setup.sh": f"mkdir -p /srv/{name}\n" for name in ("one", "two", "three")}
    write_steps(desk.folder / "bench/two", task, {**files, "tests/test.sh": f"#!/bin/sh\n{test}"})
    work = "echo x >>count; mkdir -p /opt; touch /opt/$(wc -l <count); ls /srv /opt /tests | tr '\\n' ' '"
    result = run(desk, f"command:{work}", name=mode)
    said = [(desk.folder / "runs" / mode / path["agent_log"]).read_text().split() for path in of(result, "files")]
    assert said[2] == ["/opt:", "1", "2", "3", "/srv:", "one", "three", "two", "/tests:"]
    assert [each["rewards"]["system"] for each in result["steps"]] == ([1, 2, 3] if mode == "shared" else [0, 0, 0])
    assert of(result, "scoring") == [mode] * 3
