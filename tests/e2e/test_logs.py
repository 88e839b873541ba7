"""`sweep logs`: what an agent prints, followed while it runs, and whatever else came home."""

import os
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.waiting import wait_until

if TYPE_CHECKING:
    from .conftest import Desk


pytestmark = pytest.mark.slow


def test_an_agent_is_followed_while_it_runs_to_the_end_of_its_trial(served: "Desk") -> None:
    """Its output is there within moments, byte for byte, and the end of the trial ends the command."""
    gate = served.folder / "go"
    (served.folder / "slow.py").write_text(
        "import pathlib, time\n"
        "def agent(prompt, workspace):\n"
        "    print('begun', flush=True)\n"
        f"    while not pathlib.Path({str(gate)!r}).exists():\n"
        "        time.sleep(0.05)\n"
        "    print('end')\n"
    )
    sweep = served.start("run", "six", "--agent", "./slow.py:agent", "--limit", "1", "--name", "mine")
    wait_until(lambda: served.journal("runs/mine", "stage.entered"), sweep)
    following = served.start("logs", "mine", "ant", "-f")
    following.wait_for("begun")
    gate.touch()
    ended = following.end(60)
    assert (ended.status, ended.out, ended.err) == (0, "begun\nend\n", "")
    assert sweep.end().status == 0
    assert served.sweep("logs", "mine", "ant").out == "begun\nend\n"


def test_files_of_attempts_are_listed_and_can_be_printed(served: "Desk") -> None:
    agent = "command:echo hello; echo changed >README; mkdir -p /logs/agent/a; echo t >/logs/agent/a/t"
    served.sweep("run", "six", "--agent", agent, "--agent", "nop", "--limit", "2", "--name", "mine")
    listed = served.sweep("logs", "mine").out.splitlines()
    assert len(listed) == 4
    assert listed[0].startswith("ant command 1 attempt 1 0.000: ")
    assert {"agent.log,", "patch.diff,", "scorers,", "traces,", "verifier"} <= set(listed[0].split())
    assert "+changed" in served.sweep("logs", "mine", "ant", "--arm", "command", "--file", "patch.diff").out
    assert served.sweep("logs", "mine", "ant", "--arm", "nop", "--file", "patch.diff").out == ""
    assert served.sweep("logs", "mine", "ant", "--arm", "command", "--file", "traces").out == "a/t\n"
    assert served.sweep("logs", "mine", "bee", "--arm", "command", "--file", "traces/a/t").out == "t\n"


def test_an_unknown_file_scenario_or_attempt_is_answered_with_those_that_exist(served: "Desk") -> None:
    served.sweep("run", "six", "--agent", "nop", "--agent", "oracle", "--limit", "1", "--name", "mine")
    assert "--arm nop or oracle" in served.refused("logs", "mine", "ant")
    assert "Did you mean ant?" in served.refused("logs", "mine", "amt", "--arm", "nop")
    assert "There are: agent.log" in served.refused("logs", "mine", "ant", "--arm", "nop", "--file", "x.log")
    assert "no attempt 2" in served.refused("logs", "mine", "ant", "--arm", "nop", "--attempt", "2")
    assert "no trial 2" in served.refused("logs", "mine", "ant", "--arm", "nop", "--trial", "2")
    assert "no file" in served.refused("logs", "mine", "ant", "--arm", "nop", "--file", "../../../../../journal.jsonl")
    assert "no sweep" in served.refused("logs", "nowhere")


def test_a_log_that_is_empty_says_so_and_why_the_trial_failed(served: "Desk") -> None:
    served.sweep("run", "six", "--agent", "command:true", "--limit", "1", "--name", "mine")
    silent = served.sweep("logs", "mine", "ant")
    assert (silent.out, silent.err) == ("", "The agent printed nothing.\n")
    served.sweep("run", "broken", "--agent", "command:true", "--name", "other", status=1)
    assert (
        "The agent printed nothing. The trial failed: ScoringFault: " in served.sweep("logs", "other", "too-much").err
    )


def test_closing_the_pipe_of_logs_ends_it_without_a_message(served: "Desk") -> None:
    agent = "command:yes 0123456789abcdef0123456789abcdef | head -c 300000"
    served.sweep("run", "six", "--agent", agent, "--limit", "1", "--name", "mine")
    reading, writing = os.pipe()
    printing = served.start("logs", "mine", "ant", out=writing)
    os.close(writing)
    assert os.read(reading, 10) == b"0123456789"
    os.close(reading)
    ended = printing.end(60)
    assert (ended.status, ended.err) == (1, "")


TRAJECTORY = """
{"type":"user","sessionId":"s","timestamp":"2026-01-01T00:00:00Z","message":{"role":"user","content":"hello"}}
{"type":"assistant","sessionId":"s","timestamp":"2026-01-01T00:00:01Z","message":{"id":"m1","role":"assistant","model":"m","content":[{"type":"text","text":"hi"}]}}
"""
AGENT = """
version = "1.2"
run = '''
mkdir -p ~/.tool/sessions; echo report >~/report.md; echo changed >README
cat >~/.tool/sessions/one.jsonl <<'END'
CONTENT
END
'''
[trajectory]
from = "~/.tool/**/*.jsonl"
format = "claude-code"
[gather]
files = ["~/report.md", "nowhere/*"]
"""


@pytest.mark.parametrize(("content", "flags"), [(TRAJECTORY.strip(), []), ("nonsense", ["trajectory_unread"])])
def test_files_of_an_agent_are_collected_and_named_in_its_result(
    served: "Desk", content: str, flags: list[str]
) -> None:
    """A trajectory that cannot be read is there as it is, and no reason to fail a trial."""
    (served.folder / "agents").mkdir()
    (served.folder / "agents/tool.toml").write_text(AGENT.replace("CONTENT", content))
    served.sweep("run", "six", "--agent", "tool", "--limit", "1", "--name", "mine", status=int(bool(flags)))
    (result,) = served.results("runs/mine")
    assert (result["outcome"], result["flags"], result["version"]) == ("scored", flags, "1.2")
    folder = served.folder / "runs/mine"
    assert (folder / result["files"]["artifacts"] / "report.md").read_text() == "report\n"
    assert (folder / result["files"]["trajectory"] / ".tool/sessions/one.jsonl").read_text() == content + "\n"
    assert "+changed" in served.log("runs/mine", result, "patch")
    if not flags:
        document = orjson.loads(served.log("runs/mine", result, "trajectory_atif"))
        assert [step["message"] for step in document["steps"]] == ["hello", "hi"]
        assert document["agent"]["version"] == "1.2"
