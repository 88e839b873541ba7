"""Agents that were written for Harbor, run over our devboxes: its own, and one of a user's."""

import json
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from atif import Trajectory

from tests.e2e.conftest import write_scenario
from tests.images.base_images import base_image
from tests.images.packing import PackedImage

from .conftest import INSTALLING, KEY, is_answered, run_real, settings, written_with
from .models import MENDING, Script, Submitting, serving
from .wire.exchange import Ask, Reply

if TYPE_CHECKING:
    from tests.e2e.conftest import Desk

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("harbor")]

STATEMENT: Final = "Make a file called done."


class Terminal(Script):
    """terminus-2 has no tools: it types what the text says, and is done when it says so twice."""

    def reply(self, ask: Ask) -> Reply:
        typed = [{"keystrokes": "touch done\n", "duration": 1}]
        said: dict[str, Any] = {"analysis": "a", "plan": "p", "commands": typed}
        if ask.says("touch done"):
            said |= {"commands": [], "task_complete": True}
        return Reply(text=json.dumps(said), usage=MENDING)


@pytest.fixture
def harbor_desk(real_desk: "Desk") -> "Desk":
    """A desk with a scenario, and Harbor in an environment of its own: made now, unless it was made before."""
    if not is_answered("pip", "index", "versions", "uv"):
        pytest.skip("no package index answers")
    write_scenario(real_desk.folder / "mine/one", statement=STATEMENT)
    words = ("run", "./mine", "--agent", "harbor:nop", "--dry-run")
    pyenv = {"PYENV_ROOT": os.environ.get("PYENV_ROOT") or str(Path.home() / ".pyenv")}  # the desk has another home
    ended = real_desk.start(*words, environment=settings() | pyenv).end(INSTALLING)
    if "needs Python 3.12" in ended.err:
        pytest.skip(ended.err.strip())
    assert ended.status == 0, str(ended)
    return real_desk


def test_a_name_that_harbor_does_not_have_is_refused_with_near_ones(harbor_desk: "Desk") -> None:
    line = harbor_desk.refused("run", "./mine", "--agent", "harbor:terminus-3", environment=settings())
    assert "Harbor has no agent 'terminus-3'; did you mean terminus-2?" in line


def test_terminus_2_works_in_the_devbox_from_this_machine_and_is_read(harbor_desk: "Desk") -> None:
    with serving(Terminal()) as server:
        environment = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{server.url}/v1"}
        words = ("--model", "openai/scripted")
        result = run_real(
            harbor_desk, "harbor:terminus-2", *words, environment=environment, benchmark="./mine", scenario="one"
        )
    log = harbor_desk.log("runs/mine", result)
    assert (result["score"], result["flags"], result["version"]) == (1.0, ["scored_live"], "2.0.0"), log  # tmux listens
    assert result["usage"]["input_tokens"] == server.total.input
    assert result["usage"]["output_tokens"] == server.total.output
    file = harbor_desk.folder / "runs/mine" / result["files"]["trajectory_atif"]
    document = Trajectory.model_validate_json(file.read_bytes())
    assert document.agent.name == "terminus-2"
    assert result["stages"]["prepare"]["seconds"] > 0
    assert written_with(KEY, harbor_desk.folder) == []


#: Programs in the image, as Harbor's users bake them into theirs; Harbor's own installs download from elsewhere.
DOCKERFILE: Final = """\
FROM test/debian:12
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates git nodejs npm python3-pip
RUN npm install --global --no-fund --no-audit @openai/codex@0.169.0
RUN pip install --break-system-packages --quiet 'mini-swe-agent>=2.4,<3'
WORKDIR /app
"""
#: Agents, with a setting, the version that is told of them, and a script.
BAKED: Final = {
    "codex": ("version=0.169.0", "0.169.0", Script),
    "mini-swe-agent": ("skip_install=true", None, Submitting),
}


@pytest.mark.root
@pytest.mark.parametrize("agent", BAKED)
def test_an_installed_agent_of_harbors_works_in_an_image_and_is_read(agent: str, harbor_desk: "Desk") -> None:
    scenario = harbor_desk.folder / "mine/one"
    (scenario / "environment/Dockerfile").write_text(DOCKERFILE)
    PackedImage.of(base_image("debian")).save(harbor_desk.folder / "debian.tar", "test/debian:12")
    harbor_desk.sweep("images", "load", "debian.tar", environment=settings())
    setting, version, script = BAKED[agent]
    with serving(script(fixes={STATEMENT: "touch /app/done"})) as server:
        environment = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{server.url}/v1"}
        words = ("--model", "openai/gpt-5", "--set", setting)
        result = run_real(
            harbor_desk, f"harbor:{agent}", *words, environment=environment, benchmark="./mine", scenario="one"
        )
    log = harbor_desk.log("runs/mine", result)
    assert (result["score"], result["flags"]) == (1.0, []), log
    assert result["version"] == version, "it is read from the program where Harbor knows how"
    assert result["usage"]["output_tokens"] == server.total.output
    file = harbor_desk.folder / "runs/mine" / result["files"]["trajectory_atif"]
    assert Trajectory.model_validate_json(file.read_bytes()).agent.name == agent
    assert written_with(KEY, harbor_desk.folder) == []


MINE: Final = """
import os
from pathlib import Path
from harbor.agents.base import BaseAgent

class Mine(BaseAgent):
    @staticmethod
    def name():
        return "mine"

    def version(self):
        return "7"

    async def setup(self, environment):
        await environment.exec("echo $GREETING >where; pwd >>where", cwd="/tmp", env={"GREETING": "prepared"})
        (self.logs_dir / "note.txt").write_text(os.environ["MY_KEY"])

    async def run(self, instruction, environment, context):
        where = await environment.exec("cat /tmp/where; pwd; echo oops >&2; exit 3")
        assert (where.stdout, where.stderr, where.return_code) == ("prepared\\n/tmp\\n/app\\n", "oops\\n", 3), where
        await environment.upload_file(Path(__file__), "/app/sub/mine.py")
        await environment.download_dir("/app/sub", self.logs_dir / "back")
        assert (self.logs_dir / "back/mine.py").read_text() == Path(__file__).read_text()
        other = await environment.exec("true", user="nobody")
        assert (other.return_code, "cannot as nobody" in other.stderr) == (126, True), other
        try:
            await environment.exec("sleep 60", timeout_sec=1)
        except RuntimeError as error:
            assert "timed out after 1" in str(error)
        context.n_input_tokens, context.n_output_tokens, context.cost_usd = 11, 3, 0.5
        await environment.exec("rm -r sub; echo ok >done")
        if self.depth == "forever":
            await environment.exec("sleep 600")

    def __init__(self, *args, depth="", **kwargs):
        super().__init__(*args, **kwargs)
        self.depth = depth
"""


def test_a_class_of_the_users_gets_harbors_environment_over_the_devbox(harbor_desk: "Desk") -> None:
    (harbor_desk.folder / "mine_agent.py").write_text(textwrap.dedent(MINE))
    (harbor_desk.folder / "keys.env").write_text(f"MY_KEY={KEY}\n")
    words = ("--set", "depth=forever", "--timeout-solve", "12", "--env-file", "keys.env", "--name", "mine")
    command = ("run", "./mine", "--agent", "harbor:mine_agent:Mine", *words)
    ended = harbor_desk.start(*command, environment=settings()).end(INSTALLING)
    (result,) = harbor_desk.results("runs/mine")
    log = harbor_desk.log("runs/mine", result)
    assert (result["score"], result["flags"], result["version"]) == (1.0, ["agent_timed_out"], "7"), f"{ended}{log}"
    assert result["usage"] == {"input_tokens": 11, "output_tokens": 3, "cost_usd": 0.5}
    assert list((harbor_desk.folder / "runs/mine").rglob("note.txt")), "its logs are collected"
    assert written_with(KEY, harbor_desk.folder / "runs") == [], "and secrets are masked in them"
