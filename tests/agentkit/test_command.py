"""What a declarative agent does in a devbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.agentkit.command import CommandAgent, tail
from orchestrator.agentkit.definition import parse_definition
from orchestrator.agentkit.loader import load
from orchestrator.errors import AgentSetupFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.agentkit.conftest import LocalWorkspace, MakeTask

pytestmark = pytest.mark.anyio


def make_agent(
    text: str, *, environment: Mapping[str, str] | None = None, secrets: Mapping[str, str] | None = None
) -> CommandAgent:
    definition = parse_definition(text, name="mine", file="mine.toml")
    return CommandAgent(name="mine", definition=definition, environment=environment or {}, secrets=secrets or {})


def builtin(reference: str) -> CommandAgent:
    agent = load(reference, python=None, search=(), settings={}, environ={})
    assert isinstance(agent, CommandAgent)
    return agent


def unheard(chunk: bytes) -> None:
    raise AssertionError(f"what an agent in the devbox prints goes to the workspace, not here: {chunk!r}")


async def test_the_install_step_runs_in_the_working_directory(workspace: LocalWorkspace) -> None:
    await make_agent('install = "pwd > where"\nrun = "true"').prepare(workspace)
    assert (workspace.root / "where").read_text().strip() == workspace.working_directory


async def test_an_agent_without_an_install_step_touches_nothing_to_prepare(workspace: LocalWorkspace) -> None:
    workspace.fault = AssertionError("the devbox was used")
    await builtin("nop").prepare(workspace)


async def test_a_failed_install_is_told_with_the_end_of_its_output(workspace: LocalWorkspace) -> None:
    agent = make_agent("install = \"seq 1000; echo 'npm: no such package' >&2; exit 7\"\nrun = 'true'")
    with pytest.raises(AgentSetupFailed) as caught:
        await agent.prepare(workspace)
    lines = caught.value.message.splitlines()
    assert lines[0] == "mine: the install step ended with status 7"
    assert lines[-2:] == ["1000", "npm: no such package"]
    assert len(lines) < 30


async def test_secrets_reach_the_run_and_not_the_install_step(workspace: LocalWorkspace) -> None:
    text = "install = 'env > installed'\nrun = 'true'"
    agent = make_agent(text, environment={"PLAIN": "a"}, secrets={"KEY": "hunter2"})
    await agent.prepare(workspace)
    installed = (workspace.root / "installed").read_text()
    assert "PLAIN=a" in installed
    assert "hunter2" not in installed


async def test_the_run_is_told_problem_scenario_model_and_its_variables(
    workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    agent = make_agent("run = 'true'", environment={"PLAIN": "a"}, secrets={"KEY": "hunter2"})
    await agent.solve(make_task(model="gpt-x"), workspace, unheard)
    [environment] = workspace.runs
    assert environment == {
        "PLAIN": "a",
        "KEY": "hunter2",
        "SWEEP_SCENARIO": "csv-quoted-newlines",
        "SWEEP_MODEL": "gpt-x",
        "SWEEP_PROBLEM_FILE": f"{workspace.scratch}/problem.md",
    }


async def test_without_a_model_there_is_no_model_variable(workspace: LocalWorkspace, make_task: MakeTask) -> None:
    await builtin("nop").solve(make_task(), workspace, unheard)
    assert "SWEEP_MODEL" not in workspace.runs[0]


async def test_nothing_is_written_into_the_working_directory(workspace: LocalWorkspace, make_task: MakeTask) -> None:
    await builtin("oracle").solve(make_task(reference_output="true"), workspace, unheard)
    assert list(workspace.root.iterdir()) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(st.characters(exclude_categories=())) | st.sampled_from(["$HOME `x` \"'\\\r\n\t\0", "é" * 100_000])
)
def test_a_statement_arrives_byte_for_byte_as_a_file_and_on_stdin(
    make_workspace: Callable[[], LocalWorkspace], make_task: MakeTask, prompt: str
) -> None:
    """Any text: quotes, `$`, NUL, 200 kB, and bytes that were no UTF-8 at their source."""
    try:
        expected = prompt.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return  # half a surrogate pair is not text of any file
    workspace = make_workspace()
    agent = builtin('command:cat > stdin; cat "$SWEEP_PROBLEM_FILE" > file')
    result = anyio.run(agent.solve, make_task(prompt), workspace, unheard)
    assert result.exit_status == 0
    assert (workspace.root / "stdin").read_bytes() == expected
    assert (workspace.root / "file").read_bytes() == expected


async def test_oracle_applies_the_reference_output(workspace: LocalWorkspace, make_task: MakeTask) -> None:
    agent = builtin("oracle")
    assert agent.needs_reference
    result = await agent.solve(make_task(reference_output="echo solved > answer\n"), workspace, unheard)
    assert result.exit_status == 0
    assert (workspace.root / "answer").read_text() == "solved\n"


async def test_oracle_says_which_scenario_has_no_reference_output(
    workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    with pytest.raises(AgentSetupFailed, match=r"oracle: scenario csv-quoted-newlines \(scn_1\) has no reference"):
        await builtin("oracle").solve(make_task(), workspace, unheard)
    assert workspace.runs == []


async def test_the_reference_output_reaches_nobody_else(workspace: LocalWorkspace, make_task: MakeTask) -> None:
    await builtin("command:env").solve(make_task(reference_output="echo solved"), workspace, unheard)
    assert "SWEEP_REFERENCE_FILE" not in workspace.runs[0]
    assert workspace.written == [f"{workspace.scratch}/problem.md"]


def test_the_tail_of_an_output_is_short_whatever_the_output() -> None:
    assert tail("a\nb\n\n") == "a\nb"
    assert len(tail("x" * 10_000_000)) == 2000
    assert tail("line\n" * 1000).count("line") == 20
