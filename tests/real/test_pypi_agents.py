"""mini-SWE-agent, aider and goose, run for real: installed, let loose on a scenario, scored and read."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from atif import Trajectory

from orchestrator.agentkit.file.definition import read_definition
from orchestrator.agentkit.loader import builtin_folder

from .conftest import KEY, SCENARIO, is_answered, run_real, trajectory, written_with
from .models import BUGFIX_MINI, ENDING, MENDING, Script, Submitting, serving, solutions
from .wire.exchange import Ask, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.e2e.conftest import Desk

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("real-pypi")]

PIP: Final = (sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--retries=0")
NPM: Final = ("npm", "view", "--fetch-retries=0")
#: What two replies used, as an agent counts it that calls a tool.
TWO: Final = {
    "input_tokens": MENDING.input + ENDING.input,
    "cached_tokens": MENDING.cached + ENDING.cached,
    "output_tokens": MENDING.output + ENDING.output,
}
#: The same of an agent that calls no tools, and knows of no cache.
TWICE: Final = {"input_tokens": 2 * ENDING.input, "output_tokens": 2 * ENDING.output}
READER: Final = BUGFIX_MINI / SCENARIO / "solution" / "fixed" / "reader.py"


class Editing(Script):
    """aider has no tools: it wants whole files in the text, and asks again once it has taken a file up for that."""

    def reply(self, ask: Ask) -> Reply:
        return Reply(text=f"contacts/reader.py\n```\n{READER.read_text()}```\n", usage=super().reply(ask).usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program as it is used here; `asks` asks its index for the package at the version that follows."""

    agent: str
    asks: tuple[str, ...]
    package: str
    script: type[Script] = Script
    usage: "Mapping[str, float]" = field(default_factory=lambda: TWO)
    has_tools: bool = True
    ends: str

    def __str__(self) -> str:
        return self.agent


PROGRAMS: Final = (
    Program(
        agent="mini-swe-agent",
        asks=PIP,
        package="mini-swe-agent==",
        script=Submitting,
        usage={**TWO, "turns": 2, "cost_usd": 0},
        ends="Submitted",
    ),
    Program(
        agent="aider",
        asks=PIP,
        package="aider-chat==",
        script=Editing,
        usage={**TWICE, "turns": 2, "cost_usd": 0},
        has_tools=False,
        ends="Completed --message-file",
    ),
    Program(agent="goose", asks=NPM, package="@aaif/goose-binary-linux-x64@", ends="complete"),
)


@pytest.fixture(params=PROGRAMS, ids=str)
def program(request: pytest.FixtureRequest) -> Program:
    """One of them, if its version can be had."""
    program: Program = request.param
    version = read_definition(builtin_folder() / f"{program.agent}.toml").version
    if not is_answered(*program.asks, f"{program.package}{version}"):
        pytest.skip(f"{program.package}{version} is out of reach")
    return program


def test_the_real_program_solves_a_scenario_and_is_read(program: Program, real_desk: "Desk") -> None:
    with serving(program.script(fixes=solutions(BUGFIX_MINI))) as server:
        environment = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{server.url}/v1"}
        result = run_real(real_desk, program.agent, "--model", "openai/scripted", environment=environment)
    log = real_desk.log("runs/mine", result)
    assert (result["score"], result["flags"], result["exit_reason"]) == (1.0, [], program.ends), log
    assert result["usage"] == program.usage

    if program.has_tools:
        trajectory(real_desk, result)
    file = real_desk.folder / "runs" / "mine" / result["files"]["trajectory_atif"]
    document = Trajectory.model_validate_json(file.read_bytes())
    assert (document.agent.name, document.agent.model_name) == (program.agent, "openai/scripted")
    assert document.final_metrics is not None
    assert document.final_metrics.total_prompt_tokens == result["usage"]["input_tokens"]
    assert document.final_metrics.total_completion_tokens == result["usage"]["output_tokens"]

    assert {asked.path for asked in server.requests if asked.method == "POST"} == {"/v1/chat/completions"}
    assert server.unknown == []
    assert result["network"]["refused"] == {}, "it asks for nothing but its model: no telemetry, updates or downloads"
    assert written_with(KEY, real_desk.folder) == []
    patch = (real_desk.folder / "runs" / "mine" / result["files"]["patch"]).read_text()
    assert {Path(line.split()[-1]).name for line in patch.splitlines() if line.startswith("+++ ")} == {"reader.py"}
