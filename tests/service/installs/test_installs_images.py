"""Agents in devboxes of images that have little or nothing: installed with our toolchain, and run by it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from orchestrator.agentkit.file.definition import read_definition
from orchestrator.agentkit.loader import builtin_folder
from orchestrator.common.cache_folder import cache_folder
from orchestrator.service.environments import installs
from orchestrator.service.environments.installs import InstallFailed, InstallRequest
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.closure import IN_BOX, TOOLCHAIN
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import Box, BoxSpec, ImageRoot, shell
from tests.images.base_images import base_image
from tests.real.conftest import is_answered

from .conftest import PREFIX, Shop, opened, wanted

pytestmark = [pytest.mark.anyio, pytest.mark.root]

IMAGES: Final = ("debian", "busybox", "empty")
#: Agents, and how they show that they run.
AGENTS: Final = {
    "claude-code": "claude --version",
    "codex": "codex --version",
    "opencode": "opencode --version",
    "gemini-cli": "gemini --version",
    "goose": "goose --version",
    "mini-swe-agent": "mini --help",
    "aider": "aider --version",
}
#: Stands for the toolchain, without a download.
STAND_IN: Final = """
mkdir $SWEEP_AGENT_PREFIX/bin && cd $SWEEP_AGENT_PREFIX/bin
printf '#!/bin/sh\\necho node "$@"' >node && chmod 755 node
"""
#: Programs of each kind that an install may bring.
KINDS: Final = r"""
mkdir $SWEEP_AGENT_PREFIX/bin && cd $SWEEP_AGENT_PREFIX/bin
cp /bin/cat cat && chmod 555 cat && ln cat again
script() { printf "#!$2\n$3" >$1; chmod 755 $1; }
script shell /bin/sh 'echo shell\n'
script env-shell '/usr/bin/env bash' '[[ 1 ]] && echo shell\n'
script node-script '/usr/bin/env node' ''
script node-flags '/usr/bin/env -S node --a --b' ''
script python-script '/usr/bin/python3 -I' 'import ssl, sys; print(sys.executable)\n'
script mine "$SWEEP_AGENT_PREFIX/bin/shell" ''
script own '/usr/bin/env own-interpreter' ''
script own-interpreter /bin/bash 'echo own\n'
script unknown /usr/bin/perl ''
printf '#!/bin/sh\n' >data
python3 -m venv --without-pip $SWEEP_AGENT_PREFIX/venv
"""


@asynccontextmanager
async def booted(shop: Shop, prepared: Prepared) -> AsyncIterator[Box]:
    box = await shop.provider.start(BoxSpec(id="agents", image=prepared.image, binds=prepared.binds))
    try:
        yield box
    finally:
        await box.stop()


async def said(box: Box, script: str, **environment: str) -> str:
    command = f"export SWEEP_AGENT_PREFIX={PREFIX} PATH={PREFIX}/bin:$PATH\n{script}"
    done = await run(box, shell(command, words=box.shell, environment=environment), timeout=60)
    assert done.status == 0, done.output
    return done.output


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    request = InstallRequest(key="stand-in", script=STAND_IN, prefix=installs.TOOLS.prefix)
    monkeypatch.setattr(installs, "TOOLS", request)


async def test_programs_of_every_kind_run_by_what_is_ours(shop: Shop, stand_in: None) -> None:
    folder = f"{PREFIX}/bin"
    for image in IMAGES:
        prepared = await shop.add(wanted(KINDS), Prepared(image=base_image(image).root))
        async with booted(shop, prepared) as box:
            assert await said(box, "shell; env-shell; mine; own") == "shell\nshell\nshell\nown\n"
            assert await said(box, "node-script") == f"node {folder}/node-script\n"
            assert await said(box, "node-flags x") == f"node --a --b {folder}/node-flags x\n"
            assert await said(box, "python-script") == f"{IN_BOX}/bin/python3\n"
            assert await said(box, "echo text | cat; echo text | again") == "text\ntext\n"
            shown = await said(box, "$SWEEP_AGENT_PREFIX/venv/bin/python -c 'import sys; print(sys.prefix)'")
            assert shown == f"{PREFIX}/venv\n"
            assert await said(box, f"read -r first <{folder}/unknown; echo $first") == "#!/usr/bin/perl\n"
            assert await said(box, f"read -r first <{folder}/data; echo $first") == "#!/bin/sh\n"
            assert (await run(box, shell(f"touch {TOOLCHAIN}/x", words=box.shell), timeout=20)).status != 0


async def test_the_machines_own_devboxes_have_a_layer_of_their_own(shop: Shop, stand_in: None) -> None:
    of_image = await shop.made(wanted(), Prepared(image=ImageRoot(layers=())))
    assert await shop.made(wanted()) != of_image
    assert await shop.made(wanted(), Prepared(image=base_image("busybox").root)) == of_image
    assert shop.told[:2] == [
        f"What belongs at {TOOLCHAIN} is being installed, once for all devboxes that need it.",
        f"What belongs at {TOOLCHAIN} is there.",
    ]


async def test_the_toolchain_is_first_where_an_agent_is_installed(shop: Shop, stand_in: None) -> None:
    script = "command -v node python3 bash >$SWEEP_AGENT_PREFIX/found; python3 -c 'import ensurepip'"
    prepared = await shop.add(wanted(script), Prepared(image=ImageRoot(layers=())))
    found = (shop.layer(prepared) / "found").read_text().splitlines()
    assert found == [f"{TOOLCHAIN}/bin/node", f"{IN_BOX}/bin/python3", "/usr/bin/bash"]


async def test_an_install_that_leads_to_programs_of_the_machine_is_refused_by_name(shop: Shop, stand_in: None) -> None:
    script = "ln -s /etc/hosts $SWEEP_AGENT_PREFIX/hosts; ln -s /bin/cat $SWEEP_AGENT_PREFIX/other; ln -s other cat"
    words = r"cannot be made to run on any image: \S+/other leads to /bin/cat, which an image may not have$"
    with pytest.raises(InstallFailed, match=words):
        await shop.add(wanted(script), Prepared(image=ImageRoot(layers=())))


@pytest.fixture
async def kept(provider: BwrapProvider) -> AsyncIterator[Shop]:
    """With installs that are kept for the next run of the tests, as those of whole sweeps are."""
    async with opened(provider, cache_folder()) as one:
        yield one


@pytest.mark.slow
@pytest.mark.xdist_group("toolchain")
@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agent_by_name_runs_in_any_image(agent: str, kept: Shop) -> None:
    if not is_answered("pip", "index", "versions", "uv") or not is_answered("npm", "ping", "--fetch-retries=0"):
        pytest.skip("package indexes are out of reach")
    definition = read_definition(builtin_folder() / f"{agent}.toml")
    assert definition.install is not None
    assert definition.version is not None
    request = InstallRequest(
        key=f"{agent} {definition.version} {definition.install}"[:200],
        script=definition.install,
        prefix=PREFIX,
        environment={**definition.env.constants, "SWEEP_AGENT_VERSION": definition.version},
    )
    for image in IMAGES:
        prepared = await kept.add(request, Prepared(image=base_image(image).root))
        async with booted(kept, prepared) as box:
            shown = await said(box, AGENTS[agent], **definition.env.constants)
            assert definition.version in shown or agent == "mini-swe-agent", shown
