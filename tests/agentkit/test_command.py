"""The work of a declarative agent in a devbox."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from orchestrator.agentkit.file.command import CommandAgent, tail
from orchestrator.agentkit.file.definition import parse_definition
from orchestrator.agentkit.loader import load
from orchestrator.core.errors import AgentSetupFailed
from orchestrator.core.protocol import AdditionalContext, McpServer, McpTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.agentkit.conftest import LocalWorkspace, MakeTask

pytestmark = pytest.mark.anyio


def make_agent(
    text: str, *, environment: Mapping[str, str] | None = None, secrets: Mapping[str, str] | None = None
) -> CommandAgent:
    definition = parse_definition(text, name="mine", file="mine.toml")
    return CommandAgent(name="mine", definition=definition, environment=environment or {}, secrets=secrets or {})


def load_text(text: str) -> CommandAgent:
    definition = parse_definition(text, name="mine", file="mine.toml")
    return CommandAgent(name="mine", definition=definition, model=definition.model.default)


def builtin(reference: str) -> CommandAgent:
    agent = load(reference, python=None, search=(), settings={}, environ={})
    assert isinstance(agent, CommandAgent)
    return agent


def unheard(chunk: bytes) -> None:
    raise AssertionError(f"what an agent in the devbox prints goes to the workspace, not here: {chunk!r}")


async def test_the_install_step_runs_in_the_working_directory(workspace: LocalWorkspace, make_task: MakeTask) -> None:
    await make_agent('install = "pwd > where"\nrun = "true"').prepare(make_task(), workspace)
    assert (workspace.root / "where").read_text().strip() == workspace.working_directory


async def test_an_agent_without_an_install_step_touches_nothing_to_prepare(
    workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    workspace.fault = AssertionError("the devbox was used")
    await builtin("nop").prepare(make_task(), workspace)


async def test_a_failed_install_is_reported_with_the_end_of_its_output(
    workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    agent = make_agent("install = \"seq 1000; echo 'npm: no such package' >&2; exit 7\"\nrun = 'true'")
    with pytest.raises(AgentSetupFailed) as caught:
        await agent.prepare(make_task(), workspace)
    lines = caught.value.message.splitlines()
    assert lines[0] == "mine: the install step ended with status 7"
    assert lines[-2:] == ["1000", "npm: no such package"]
    assert len(lines) < 30


async def test_an_install_step_sees_its_prefix_its_version_and_constants_and_nothing_of_the_user(
    workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    text = "version = '1.2'\ninstall = 'env > installed'\nrun = 'true'\n[env]\nset = { QUIET = '1' }"
    agent = make_agent(text, environment={"PLAIN": "a"}, secrets={"KEY": "hunter2"})
    await agent.prepare(make_task(), workspace)
    installed = (workspace.root / "installed").read_text()
    assert f"SWEEP_AGENT_PREFIX={workspace.home}/.agent\n" in installed
    assert "SWEEP_AGENT_VERSION=1.2\n" in installed
    assert "QUIET=1\n" in installed
    assert "PLAIN" not in installed
    assert "hunter2" not in installed


async def test_an_install_of_the_endpoint_is_used_and_not_repeated(
    workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    agent = make_agent("install = 'touch again'\nrun = 'echo $SWEEP_AGENT_PREFIX > prefix'")
    assert agent.install is not None
    workspace.installed = frozenset({agent.install.key})
    await agent.prepare(make_task(), workspace)
    await agent.solve(make_task(), workspace, unheard)
    assert not (workspace.root / "again").exists()
    assert (workspace.root / "prefix").read_text().strip() == agent.install.prefix


async def test_installed_programs_are_on_the_path_of_the_run(workspace: LocalWorkspace, make_task: MakeTask) -> None:
    install = 'mkdir -p "$SWEEP_AGENT_PREFIX/bin"; cd "$SWEEP_AGENT_PREFIX/bin"; printf "echo mine > $HOME/ran" > mine'
    agent = make_agent(f"install = '''{install}; chmod +x mine'''\nrun = 'mine'")
    await agent.prepare(make_task(), workspace)
    result = await agent.solve(make_task(), workspace, unheard)
    assert (result.exit_status, result.message) == (0, "")
    assert (workspace.root / "ran").read_text() == "mine\n"


def test_an_install_has_one_key_as_long_as_its_result_is_the_same() -> None:
    def key(text: str, **values: Mapping[str, str]) -> str:
        install = make_agent(text, **values).install
        assert install is not None
        return install.key

    text = "version = '1'\ninstall = 'y'\nrun = 'x'"
    same = [
        key(text),
        key(text.replace("'x'", "'z'")),
        key(text, environment={"A": "1"}, secrets={"B": "2"}),
    ]
    other = [key(text.replace("'1'", "'2'")), key(text.replace("'y'", "'z'")), key(text + "\nenv.set = { A = '1' }")]
    assert len(set(same)) == 1
    assert len({*same, *other}) == 4


async def test_the_run_gets_problem_scenario_model_and_its_variables(
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


async def test_the_model_is_in_the_agents_own_variable_too(workspace: LocalWorkspace, make_task: MakeTask) -> None:
    text = "run = 'true'\n[model]\ndefault = 'small'\nvariable = 'OUR_MODEL'"
    agent = load_text(text)
    await agent.solve(make_task(model="large"), workspace, unheard)
    await agent.solve(make_task(), workspace, unheard)
    models = [(run["SWEEP_MODEL"], run["OUR_MODEL"]) for run in workspace.runs]
    assert models == [("large", "large"), ("small", "small")]


def test_outputs_of_an_agent_are_those_its_file_names() -> None:
    text = "run = 'x'\n[gather]\nfiles = ['~/a.md']\n[trajectory]\nfrom = '~/.x/*.jsonl'\nformat = 'codex'"
    outputs = make_agent(text).outputs
    assert (outputs.artifacts, outputs.trajectory, outputs.trajectory_format) == (
        ("~/a.md",),
        ("~/.x/*.jsonl",),
        "codex",
    )
    printed = make_agent("run = 'x'\n[trajectory]\nfrom = 'output'\nformat = 'codex'").outputs
    assert (printed.trajectory, printed.trajectory_format) == ((), "codex")
    assert make_agent("run = 'x'").outputs.trajectory_format is None


async def test_without_a_model_there_is_no_model_variable(workspace: LocalWorkspace, make_task: MakeTask) -> None:
    await builtin("nop").solve(make_task(), workspace, unheard)
    assert "SWEEP_MODEL" not in workspace.runs[0]


async def test_nothing_is_written_into_the_working_directory(workspace: LocalWorkspace, make_task: MakeTask) -> None:
    await builtin("oracle").solve(make_task(reference_output="true"), workspace, unheard)
    assert list(workspace.root.iterdir()) == []


async def test_oracle_applies_the_reference_output(workspace: LocalWorkspace, make_task: MakeTask) -> None:
    agent = builtin("oracle")
    assert agent.needs_reference
    result = await agent.solve(make_task(reference_output="echo solved > answer\n"), workspace, unheard)
    assert result.exit_status == 0
    assert (workspace.root / "answer").read_text() == "solved\n"


async def test_oracle_says_which_scenario_has_no_reference_output(
    workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    with pytest.raises(AgentSetupFailed, match=r"oracle: scenario csv-quoted-newlines \(scn_1\) has no solution/solve"):
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


STDIO: Final = McpServer(name="near", transport=McpTransport.STDIO, command="a b", args=('"x"', "\x7f\n"))
HTTP: Final = McpServer(name="far", transport=McpTransport.STREAMABLE_HTTP, url="http://x/mcp", headers={"X-Who": "me"})
CONTEXT: Final = AdditionalContext(mcp_servers=(STDIO, HTTP), skills_dir="given skills")
TAKING: Final = """
run = 'cp "$SWEEP_MCP_FILE" seen; ls ~/.mine'
[mcp]
file = "~/.mine/servers"
format = "FORMAT"
servers = "tools.mcp"
stdio = { all = ["first", "{command}", "{args}"], kept = "" }
streamable-http = { at = "{url}", with = "{headers}", none = "{args}" }
[skills]
folder = "~/.mine/my skills"
"""


@pytest.mark.parametrize(("kind", "read"), [("json", json.loads), ("toml", tomllib.loads)])
async def test_servers_and_skills_of_a_scenario_are_put_where_the_agent_looks_for_them(
    workspace: LocalWorkspace, make_task: MakeTask, kind: str, read: Callable[[str], object]
) -> None:
    (workspace.root / "given skills").mkdir()
    (workspace.root / "given skills" / "one.md").write_text("one")
    agent = make_agent(TAKING.replace("FORMAT", kind))
    result = await agent.solve(make_task(context=CONTEXT), workspace, unheard)
    assert (result.exit_status, result.message) == (0, "")
    near = {"all": ["first", "a b", '"x"', "\x7f\n"], "kept": ""}
    far = {"at": "http://x/mcp", "with": {"X-Who": "me"}}
    for file in ("seen", ".mine/servers"):
        assert read((workspace.root / file).read_text()) == {"tools": {"mcp": {"near": near, "far": far}}}
    assert (workspace.root / ".mine/my skills/one.md").read_text() == "one"
    assert list(agent.unmet(CONTEXT)) == []


def test_headers_are_filled_in_with_variables_or_their_defaults() -> None:
    headers = {"A": "Bearer ${TOKEN}:${ID:-none}", "B": "${ID}", "C": "$TOKEN {ID}"}
    context = AdditionalContext(mcp_servers=(STDIO, replace(HTTP, headers=headers)))
    assert context.variables == {"TOKEN": True, "ID": True}
    filled = context.filled({"TOKEN": "t", "ID": "i"}).mcp_servers
    assert filled == (STDIO, replace(HTTP, headers={"A": "Bearer t:i", "B": "i", "C": "$TOKEN {ID}"}))
    del headers["B"]
    assert context.variables == {"TOKEN": True, "ID": False}
    assert context.filled({"TOKEN": "t"}).mcp_servers[1].headers["A"] == "Bearer t:none"


async def test_a_scenario_without_servers_and_skills_leaves_the_agents_settings_alone(
    workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    agent = make_agent(TAKING.replace("FORMAT", "json").replace("cp ", "echo "))
    await agent.solve(make_task(), workspace, unheard)
    assert not (workspace.root / ".mine").exists()
    assert "SWEEP_MCP_FILE" not in workspace.runs[0]


@pytest.mark.parametrize(
    ("text", "unmet"),
    [
        ("", ["the MCP server near (stdio)", "the MCP server far (streamable-http)", "skills"]),
        ("[mcp]\nstdio = { c = '{command}' }", ["the MCP server far (streamable-http)", "skills"]),
        (
            "[skills]\nfolder = '/s'\n[mcp]\nstdio = { c = '{command}' }\nstreamable-http = { at = '{url}' }",
            ["the headers of the MCP server far"],
        ),
        ("ignores = ['mcp_servers']", ["skills"]),
        ("ignores = ['mcp_servers', 'skills']", []),
    ],
)
def test_an_agent_names_what_of_a_scenario_it_cannot_take(text: str, unmet: list[str]) -> None:
    assert list(make_agent(f"run = 'true'\n{text}").unmet(CONTEXT)) == unmet
    prior = AdditionalContext(trajectory="{}")
    assert list(make_agent("run = 'true'").unmet(prior)) == ["a trajectory to start from"]
    for name in ("oracle", "nop"):
        assert list(builtin(name).unmet(replace(CONTEXT, trajectory="{}"))) == []
