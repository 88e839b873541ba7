"""Agents by name in devboxes of images that have nothing: installed with our toolchain, and run by it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.agentkit.file.definition import read_definition
from orchestrator.agentkit.loader import builtin_folder
from orchestrator.service.environments.installs import InstallRequest
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import BoxSpec, ImageRoot, shell
from tests.real.conftest import is_answered

from .conftest import PREFIX, Shop, opened

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("toolchain")]

#: Agents, and how they say their version.
AGENTS = {
    "claude-code": "claude --version",
    "codex": "codex --version",
    "opencode": "opencode --version",
    "gemini-cli": "gemini --version",
    "goose": "goose --version",
    "mini-swe-agent": "mini --help",
    "aider": "aider --version",
}


@pytest.fixture
async def shop(provider: BwrapProvider) -> AsyncIterator[Shop]:
    """With installs that are kept for the next run of the tests."""
    cache = Path.home() / ".cache" / "sweep-tests"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with opened(provider, cache) as one:
        yield one


@pytest.fixture
def empty(tmp_path: Path) -> ImageRoot:
    (tmp_path / "empty").mkdir()
    return ImageRoot(layers=(tmp_path / "empty",))


@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agent_runs_in_an_image_that_has_nothing(agent: str, shop: Shop, empty: ImageRoot) -> None:
    if not is_answered("pip", "download", "--no-deps", "--quiet", "--dest", "/tmp/none", "idna==3.10"):
        pytest.skip("package indexes are out of reach")
    definition = read_definition(builtin_folder() / f"{agent}.toml")
    assert definition.install is not None
    request = InstallRequest(
        key=f"test-{agent}-{definition.version}",
        script=definition.install,
        prefix=PREFIX,
        environment={**definition.env.constants, "SWEEP_AGENT_VERSION": definition.version or ""},
    )
    prepared = await shop.add(request, Prepared(image=empty))
    box = await shop.provider.start(BoxSpec(id="agent", image=empty, binds=prepared.binds))
    try:
        command = f"export SWEEP_AGENT_PREFIX={PREFIX} PATH={PREFIX}/bin:$PATH\n{AGENTS[agent]}"
        done = await run(box, shell(command, words=box.shell, environment=definition.env.constants), timeout=60)
        assert done.status == 0, done.output
    finally:
        await box.stop()
