"""Python agents over packages as people have them: openai-agents, and mini-swe-agent's own loop as `mini`."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchestrator.common.cache_folder import cache_folder

from .conftest import KEY, is_answered, run_real, written_with
from .models import BUGFIX_MINI, DONE, Server, Submitting, serving, solutions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Desk

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("python agents")]

PACKAGES = ("mini-swe-agent>=2.4,<3", "openai-agents>=0.2,<1")


@pytest.fixture(scope="session")
def python() -> Path:
    """An interpreter with both packages, made once and kept for the next run of the tests."""
    folder = cache_folder() / f"python-agents-{sys.version_info.major}.{sys.version_info.minor}"
    python, is_made = folder / "bin" / "python", folder / "made"
    if not is_made.exists():
        if not is_answered(sys.executable, "-m", "pip", "index", "versions", "mini-swe-agent"):
            pytest.skip("no package index answers")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, timeout=900)
        is_made.touch()
    return python


@pytest.fixture
def submitting() -> "Iterator[Server]":
    with serving(Submitting(fixes=solutions(BUGFIX_MINI))) as server:
        yield server


def test_mini_mends_a_scenario_with_a_real_loop_and_counts_what_it_used(
    real_desk: "Desk", submitting: Server, python: Path
) -> None:
    environment = {"OPENAI_BASE_URL": f"{submitting.url}/v1", "OPENAI_API_KEY": KEY}
    words = ("--model", "openai/scripted", "--python", str(python))
    result = run_real(real_desk, "mini", *words, environment=environment)
    assert (result["score"], result["exit_reason"]) == (1.0, "Submitted")
    total = submitting.total
    assert result["usage"] == {
        "input_tokens": total.input,
        "output_tokens": total.output,
        "cached_tokens": total.cached,
        "turns": 2,
    }
    (trajectory,) = (real_desk.folder / "runs" / "mine" / result["files"]["trajectory"]).rglob("mini.traj.json")
    assert "mini-swe-agent-1.1" in trajectory.read_text()
    assert submitting.unknown == []
    assert written_with(KEY, real_desk.folder) == []


def test_mini_says_what_is_missing_where_its_package_is_not(real_desk: "Desk") -> None:
    line = real_desk.refused("run", "bugfix-mini", "--agent", "mini", "--model", "m", "--limit", "1")
    assert "mini-swe-agent" in line
    assert "pip install" in line


def test_an_agent_of_openai_agents_works_beside_a_folder_of_agent_files(
    real_desk: "Desk", server: Server, python: Path
) -> None:
    """Its import name is `agents`, as is the name of that folder."""
    (real_desk.folder / "agents").mkdir()
    (real_desk.folder / "agents" / "other.toml").write_text("run = 'true'\n")
    (real_desk.folder / "mine.py").write_text(
        textwrap.dedent("""
        from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
        from openai import AsyncOpenAI

        class MyAgent:
            def __init__(self, prompt, workspace, model, log):
                set_tracing_disabled(True)
                self.prompt, self.log = prompt, log

                @function_tool
                async def bash(command: str) -> str:
                    "Run a command in the shell."
                    done = await workspace.aexec(command)
                    return done.stdout + done.stderr

                chat = OpenAIChatCompletionsModel(model=model, openai_client=AsyncOpenAI())
                self.agent = Agent(name="mender", model=chat, tools=[bash])

            async def run(self):
                result = await Runner.run(self.agent, self.prompt)
                used = result.context_wrapper.usage
                self.log(result.final_output)
                return {"usage": {"input_tokens": used.input_tokens, "output_tokens": used.output_tokens}}
        """)
    )
    environment = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": KEY}
    words = ("--model", "scripted", "--python", str(python))
    result = run_real(real_desk, "./mine.py:MyAgent", *words, environment=environment)
    log = real_desk.log("runs/mine", result)
    assert (result["score"], result["flags"]) == (1.0, []), log
    assert result["usage"] == {"input_tokens": server.total.input, "output_tokens": server.total.output}
    assert DONE in log
