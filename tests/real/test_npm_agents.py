"""The command-line agents of the npm registry, run for real: installed, let loose on a scenario, scored and read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from atif import Trajectory

from orchestrator.agentkit.file.definition import read_definition
from orchestrator.agentkit.loader import builtin_folder

from .conftest import KEY, SCENARIO, is_answered, run_real, trajectory, written_with
from .models import BUGFIX_MINI, DONE, ENDING, MENDING

if TYPE_CHECKING:
    from tests.e2e.conftest import Desk

    from .models import Server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("real-npm")]

STATEMENT: Final = (BUGFIX_MINI / SCENARIO / "instruction.md").read_text().strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cli:
    """A program as it is used here: `key` and `base` are variables, `path` follows the server's address.

    `told` are the headers that carry the key, `reports` what it reports besides tokens, `ends` its word for the end.
    """

    agent: str
    package: str
    model: str
    key: str
    base: str
    path: str = ""
    protocol: str
    told: str
    reports: frozenset[str] = frozenset({"turns"})
    ends: str
    has_statement: bool = True

    def __str__(self) -> str:
        return f"{self.agent}-{self.model}".replace("/", "-")


CLIS: Final = (
    Cli(
        agent="claude-code",
        package="@anthropic-ai/claude-code",
        model="claude-sonnet-4-5",
        key="ANTHROPIC_API_KEY",
        base="ANTHROPIC_BASE_URL",
        protocol="/v1/messages",
        told="x-api-key",
        reports=frozenset({"turns", "cost_usd"}),
        ends="completed",
    ),
    Cli(
        agent="codex",
        package="@openai/codex",
        model="gpt-5",
        key="OPENAI_API_KEY",
        base="OPENAI_BASE_URL",
        path="/v1",
        protocol="/v1/responses",
        told="authorization",
        ends="task_complete",
    ),
    Cli(
        agent="gemini-cli",
        package="@google/gemini-cli",
        model="gemini-2.5-pro",
        key="GEMINI_API_KEY",
        base="GOOGLE_GEMINI_BASE_URL",
        protocol="/v1beta/models/gemini-2.5-pro:streamGenerateContent",
        told="x-goog-api-key",
        reports=frozenset(),
        ends="success",
    ),
    Cli(
        agent="opencode",
        package="opencode-ai",
        model="openai/gpt-5",
        key="OPENAI_API_KEY",
        base="OPENAI_BASE_URL",
        path="/v1",
        protocol="/v1/responses",
        told="authorization",
        reports=frozenset({"turns", "cost_usd"}),
        ends="stop",
        has_statement=False,
    ),
    Cli(
        agent="opencode",
        package="opencode-ai",
        model="anthropic/claude-sonnet-4-5",
        key="ANTHROPIC_API_KEY",
        base="ANTHROPIC_BASE_URL",
        protocol="/v1/messages",
        told="x-api-key",
        reports=frozenset({"turns", "cost_usd"}),
        ends="stop",
        has_statement=False,
    ),
    Cli(
        agent="opencode",
        package="opencode-ai",
        model="openrouter/openai/gpt-5",
        key="OPENROUTER_API_KEY",
        base="OPENROUTER_BASE_URL",
        path="/v1",
        protocol="/v1/chat/completions",
        told="authorization",
        reports=frozenset({"turns", "cost_usd"}),
        ends="stop",
        has_statement=False,
    ),
)


@pytest.fixture(params=CLIS, ids=str)
def cli(request: pytest.FixtureRequest) -> Cli:
    """One of them, if npm can say that its version is there."""
    cli: Cli = request.param
    version = read_definition(builtin_folder() / f"{cli.agent}.toml").version
    if not is_answered("npm", "view", f"{cli.package}@{version}", "version", "--fetch-retries=0"):
        pytest.skip("npm is not here, or its registry is out of reach")
    return cli


def test_the_real_program_solves_a_scenario_and_is_read(cli: Cli, real_desk: "Desk", server: "Server") -> None:
    environment = {cli.key: KEY, cli.base: server.url + cli.path}
    result = run_real(real_desk, cli.agent, "--model", cli.model, environment=environment)
    log = real_desk.log("runs/mine", result)
    assert (result["score"], result["flags"], result["exit_reason"]) == (1.0, [], cli.ends), log

    usage = dict(result["usage"])
    more = {name: usage.pop(name, 0) for name in cli.reports}
    assert usage == {
        "input_tokens": MENDING.input + ENDING.input,
        "cached_tokens": MENDING.cached + ENDING.cached,
        "output_tokens": MENDING.output + ENDING.output,
    }
    assert all(more.values()), result["usage"]
    assert more.get("turns", 2) == 2

    document = Trajectory.model_validate(trajectory(real_desk, result))
    assert (document.agent.name, document.agent.model_name) == (cli.agent, cli.model)
    assert document.steps[-1].message == DONE
    assert document.final_metrics is not None
    assert document.final_metrics.total_prompt_tokens == usage["input_tokens"]
    assert document.final_metrics.total_completion_tokens == usage["output_tokens"]
    said = [str(step.message).strip() for step in document.steps if step.source == "user"]
    assert (STATEMENT in said) is cli.has_statement, said

    assert [asked.path for asked in server.requests] == [cli.protocol] * 2, "and nothing else is asked of the server"
    assert all(KEY in asked.headers[cli.told] for asked in server.requests)
    assert result["network"]["refused"] == {}, "it asks for nothing but its model: no telemetry, updates or downloads"
    assert list(result["network"]["reached"]) == [server.url.removeprefix("http://")]
    assert written_with(KEY, real_desk.folder) == []
