"""Agents by name run for real on an image that has neither Node.js nor Python nor bash: they solve it and are read."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.images.base_images import base_image
from tests.images.packing import PackedImage

from .conftest import KEY, is_answered, run_real, settings
from .models import ENDING, MENDING, Script, Submitting, serving

if TYPE_CHECKING:
    from tests.e2e.conftest import Desk

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.xdist_group("toolchain")]

STATEMENT: Final = "Write the word hello into greeting.txt."
FILES: Final = {
    "instruction.md": f"{STATEMENT}\n",
    "task.toml": 'version = "1.0"\n[environment]\nallow_internet = false\n',
    "environment/Dockerfile": "FROM test/busybox:1\nWORKDIR /srv/work\nRUN echo nothing >greeting.txt\n",
    "tests/test.sh": "#!/bin/sh\ngrep -qx hello /srv/work/greeting.txt && echo 1 >/logs/verifier/reward.txt\n",
    "solution/solve.sh": "#!/bin/sh\necho hello >greeting.txt\n",
}
#: Agents, with a model, the variables of its key and its address, what follows the server's address, and a script.
AGENTS: Final = {
    "claude-code": ("claude-sonnet-4-5", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "", Script),
    "codex": ("gpt-5", "OPENAI_API_KEY", "OPENAI_BASE_URL", "/v1", Script),
    "gemini-cli": ("gemini-2.5-pro", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL", "", Script),
    "opencode": ("openai/gpt-5", "OPENAI_API_KEY", "OPENAI_BASE_URL", "/v1", Script),
    "mini-swe-agent": ("openai/gpt-5", "OPENAI_API_KEY", "OPENAI_BASE_URL", "/v1", Submitting),
}


@pytest.fixture
def benchmark(real_desk: "Desk") -> Path:
    for name, text in FILES.items():
        file = real_desk.folder / "greetings/greet" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755 if file.suffix == ".sh" else 0o644)
    PackedImage.of(base_image("busybox")).save(real_desk.folder / "busybox.tar", "test/busybox:1")
    real_desk.sweep("images", "load", "busybox.tar", environment=settings())
    return real_desk.folder / "greetings"


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_solves_a_scenario_on_an_image_and_is_read(agent: str, real_desk: "Desk", benchmark: Path) -> None:
    if not is_answered("pip", "index", "versions", "uv") or not is_answered("npm", "ping", "--fetch-retries=0"):
        pytest.skip("package indexes are out of reach")
    model, key, base, path, kind = AGENTS[agent]
    with serving(kind(fixes={STATEMENT: "pwd; echo hello >greeting.txt"})) as server:
        environment = {key: KEY, base: server.url + path}
        words = ("--model", model)
        result = run_real(real_desk, agent, *words, environment=environment, benchmark=str(benchmark), scenario="greet")
    log = real_desk.log("runs/mine", result)
    assert (result["score"], result["flags"]) == (1.0, []), log
    assert result["usage"]["output_tokens"] >= MENDING.output + ENDING.output, result
    assert result["network"]["refused"] == {}, "it asks for nothing but its model"
    attempt = (real_desk.folder / "runs/mine" / result["files"]["agent_log"]).parent
    assert "+hello" in (attempt / "patch.diff").read_text()
    assert (attempt / "trajectory.json").exists()
