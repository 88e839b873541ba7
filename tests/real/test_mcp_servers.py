"""MCP servers and skills of a scenario reach the real programs: these offer both to their model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.conftest import write_scenario

from .conftest import KEY, is_answered, run_real
from .models import Script, serving
from .wire import mcp

if TYPE_CHECKING:
    from tests.e2e.conftest import Desk

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("real-npm")]

STATEMENT: Final = "Do what is missing, with the tools that you have."
#: A model, the variables of its key and its address, and what follows the server's address.
AGENTS: Final = {
    "claude-code": ("claude-sonnet-4-5", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", ""),
    "codex": ("gpt-5", "OPENAI_API_KEY", "OPENAI_BASE_URL", "/v1"),
    "gemini-cli": ("gemini-2.5-pro", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL", ""),
    "opencode": ("openai/gpt-5", "OPENAI_API_KEY", "OPENAI_BASE_URL", "/v1"),
    "goose": ("openai/gpt-5", "OPENAI_API_KEY", "OPENAI_BASE_URL", "/v1"),
}
TASK: Final = """\
[environment]
allow_internet = false
skills_dir = "skills"
[[environment.mcp_servers]]
name = "near"
transport = "stdio"
command = "python3"
args = ["/app/mcp.py", "near_tool"]
[[environment.mcp_servers]]
name = "far"
transport = "http"
url = "{url}/mcp"
headers = {{ X-Who = "the scenario" }}
"""


@pytest.mark.parametrize("agent", AGENTS)
def test_the_real_program_offers_its_model_the_tools_and_skills_of_a_scenario(agent: str, real_desk: "Desk") -> None:
    if not is_answered("npm", "ping", "--fetch-retries=0"):
        pytest.skip("npm is not here, or its registry is out of reach")
    model, key, base, path = AGENTS[agent]
    with serving(Script(fixes={STATEMENT: "touch /app/done"})) as server:
        task = TASK.format(url=server.url)
        scenario = write_scenario(real_desk.folder / "mine/one", statement=STATEMENT, task=task)
        (scenario / "environment/mcp.py").write_text(Path(mcp.__file__).read_text())
        skill = scenario / "environment/skills/painting-zebras/SKILL.md"
        skill.parent.mkdir(parents=True)
        skill.write_text("---\nname: painting-zebras\ndescription: How a zebra gets its stripes.\n---\nIn black.\n")
        environment = {key: KEY, base: server.url + path}
        words = ("--model", model)
        result = run_real(real_desk, agent, *words, environment=environment, benchmark="./mine", scenario="one")
    log = real_desk.log("runs/mine", result)
    assert (result["score"], result["flags"]) == (1.0, []), log
    told = json.dumps([asked.body for asked in server.requests])
    assert [word for word in ("near_tool", "far_tool", "painting-zebras") if word not in told] == []
    spoken = [asked.headers for asked in server.requests if asked.path == "/mcp" and asked.method == "POST"]
    assert {headers["x-who"] for headers in spoken} == {"the scenario"}
    patch = (real_desk.folder / "runs/mine" / result["files"]["patch"]).read_text()
    assert [line for line in patch.splitlines() if line.startswith("+++ ")] == [], "nothing of it is in the work"
