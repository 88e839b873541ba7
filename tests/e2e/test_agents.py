"""Agents as people bring them: shell commands and Python classes, good ones, broken ones, endless ones."""

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import carrying
from tests.waiting import wait_until

from .conftest import NASTY, STATEMENT

if TYPE_CHECKING:
    from .conftest import Desk


pytestmark = pytest.mark.slow


def run_one(desk: "Desk", agent: str, *words: str, benchmark: str = "six", status: int = 0) -> dict[str, Any]:
    """Run an agent on one scenario; the line of its result, with the run folder's path as `folder`."""
    command = ("run", benchmark, "--agent", agent, "--limit", "1", "--name", "mine", *words)
    desk.sweep(*command, status=status)
    (result,) = desk.results("runs/mine")
    return result


def test_a_statement_reaches_a_command_byte_for_byte_by_file_and_by_stdin(served: "Desk") -> None:
    """Nothing of it is expanded, quoted or trimmed, and the devbox judges by comparing bytes."""
    result = run_one(served, 'command:cat "$SWEEP_PROBLEM_FILE" >by-file && cat >by-stdin', benchmark="nasty")
    assert (result["score"], result["flags"]) == (1.0, []), served.log("runs/mine", result, "scorer_tests")


def test_a_command_is_the_shells_word_for_word(served: "Desk") -> None:
    agent = (
        """command:touch done; printf '%s|' "it's" 'a  "b" $HOME' "$((40+2))" "$SWEEP_SCENARIO" `echo x`\necho end"""
    )
    result = run_one(served, agent)
    assert served.log("runs/mine", result) == """it's|a  "b" $HOME|42|ant|x|end\n"""
    assert (result["score"], result["agent"]) == (1.0, agent)


def test_an_agent_that_crashes_is_scored_as_it_left_things_and_flagged(served: "Desk") -> None:
    result = run_one(served, "command:touch done; echo sorry >&2; exit 3", status=1)
    assert (result["outcome"], result["score"], result["flags"]) == ("scored", 1.0, ["agent_crashed"])
    assert served.log("runs/mine", result) == "sorry\n"
    (solved,) = [event for event in served.journal("runs/mine", "stage.finished") if event["stage"] == "solve"]
    assert solved["facts"]["exit_status"] == 3


def test_an_agent_that_crashes_fails_its_trial_if_that_is_asked(served: "Desk") -> None:
    agent = "command:touch done; echo sorry >&2; exit 3"
    result = run_one(served, agent, "--on-agent-failure", "fail", status=1)
    assert (result["outcome"], result["score"]) == ("failed", None)
    assert (result["failure"]["class"], result["failure"]["stage"]) == ("AgentCrashed", "solve")
    assert "sorry" in result["failure"]["message"]
    assert len(result["attempts"]) == 1, "it is the agent's doing, so it is not tried again"


def test_an_agent_out_of_time_is_ended_with_all_it_started_and_scored(served: "Desk") -> None:
    mark = uuid.uuid4().hex
    sleeper = f"python3 -c 'import time; time.sleep(600)' {mark}"
    agent = f"command:touch done; setsid {sleeper} </dev/null >/dev/null 2>&1 & {sleeper}"
    result = run_one(served, agent, "--timeout-solve", "2", status=1)
    assert (result["outcome"], result["score"], result["flags"]) == ("scored", 1.0, ["agent_timed_out"])
    assert 1.5 < result["stages"]["solve"]["seconds"] < 30
    wait_until(lambda: not carrying(mark), lambda: f"left: {carrying(mark)}", seconds=5)


def test_a_python_class_that_takes_a_prompt_alone_works_as_it_stands(served: "Desk") -> None:
    (served.folder / "mine.py").write_text(
        "class MyAgent:\n"
        "    def __init__(self, prompt):\n"
        "        self.prompt = prompt\n"
        "    def run(self):\n"
        "        print(repr(self.prompt))\n"
    )
    result = run_one(served, "./mine.py:MyAgent")
    assert (result["outcome"], result["score"], result["flags"]) == ("scored", 0.0, [])
    assert served.log("runs/mine", result) == f"{STATEMENT!r}\n"


def test_a_python_class_with_a_workspace_works_in_the_devbox(served: "Desk") -> None:
    """The statement it is given, and the bytes it writes and reads, are those of the scenario."""
    (served.folder / "mine.py").write_text(
        "class MyAgent:\n"
        "    def __init__(self, prompt, workspace, scenario, model, settings):\n"
        "        self.prompt, self.workspace = prompt, workspace\n"
        "        print(model, settings['depth'])\n"
        "    async def solve(self):\n"
        "        self.workspace.write('by-file', self.prompt.encode())\n"
        "        assert self.workspace.read('by-file') == self.prompt.encode()\n"
        "        done = self.workspace.exec('cp by-file by-stdin; echo out; echo err >&2; exit 4')\n"
        "        print(done.exit_status, repr(done.stdout), repr(done.stderr))\n"
    )
    (served.folder / "sweep.toml").write_text(
        'benchmark = "nasty"\nname = "mine"\n'
        '[[arms]]\nagent = "./mine.py:MyAgent"\nmodel = "m-1"\nsettings = { depth = 2 }\n'
    )
    served.sweep("run", "--config", "sweep.toml")
    (result,) = served.results("runs/mine")
    assert (result["score"], result["flags"], result["model"]) == (1.0, [], "m-1")
    assert (result["arm"], served.log("runs/mine", result)) == ("MyAgent+m-1", "m-1 2\n4 'out\\n' 'err\\n'\n")
    assert NASTY not in served.log("runs/mine", result)


def test_a_python_class_that_crashes_is_scored_and_its_traceback_is_in_its_log(served: "Desk") -> None:
    (served.folder / "mine.py").write_text(
        "class MyAgent:\n"
        "    def __init__(self, prompt): ...\n"
        "    def run(self):\n"
        "        raise LookupError('no idea')\n"
    )
    result = run_one(served, "mine.py:MyAgent", status=1)
    assert (result["outcome"], result["score"], result["flags"]) == ("scored", 0.0, ["agent_crashed"])
    log = served.log("runs/mine", result)
    assert "LookupError: no idea" in log
    assert "mine.py" in log


def test_a_python_agent_out_of_time_is_ended_with_all_it_started(served: "Desk") -> None:
    mark = uuid.uuid4().hex
    (served.folder / "mine.py").write_text(
        "import subprocess, sys, time\n"
        "def agent(prompt):\n"
        f"    sleeper = [sys.executable, '-c', 'import time; time.sleep(600)', {mark!r}]\n"
        "    subprocess.Popen(sleeper, start_new_session=True)\n"
        "    subprocess.run(sleeper)\n"
    )
    result = run_one(served, "mine.py:agent", "--timeout-solve", "2", status=1)
    assert (result["outcome"], result["flags"]) == ("scored", ["agent_timed_out"])
    wait_until(lambda: not carrying(mark), lambda: f"left: {carrying(mark)}", seconds=5)


def test_an_agent_of_the_users_own_by_name_wins_over_ours(served: "Desk") -> None:
    (served.folder / "agents").mkdir()
    (served.folder / "agents" / "nop.toml").write_text('description = "Mine."\nrun = "touch done; echo mine"\n')
    result = run_one(served, "nop")
    assert (result["score"], served.log("runs/mine", result)) == (1.0, "mine\n")
