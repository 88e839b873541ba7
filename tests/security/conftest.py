"""A sandboxed box to attack from inside, and a served service to attack from outside."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from orchestrator.common.address import Address
from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.base_provider import AgentBox
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.provider import BoxSpec, Command, shell
from orchestrator.service.server import serve
from tests.sandbox.conftest import image  # noqa: F401

PATIENCE = 30.0
Boot = Callable[..., Awaitable[AgentBox]]
Serving = Callable[..., AbstractAsyncContextManager[tuple[Address, httpx.AsyncClient]]]


@pytest.fixture(scope="module")
async def local(sandboxes: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BwrapProvider]:
    provider = BwrapProvider(tmp_path_factory.mktemp("security") / "devboxes")
    yield provider
    await provider.close()


@pytest.fixture
async def boot(local: BwrapProvider) -> AsyncIterator[Boot]:
    """Boots boxes that end with the test."""
    boxes: list[AgentBox] = []

    async def start(**spec: Any) -> AgentBox:
        boxes.append(await local.start(BoxSpec(**{"id": f"dbx-{uuid.uuid4().hex[:8]}", **spec})))
        return boxes[-1]

    yield start
    for box in boxes:
        await box.stop()


async def said_in(box: AgentBox, script: str) -> str:
    """Output of a login shell's script, on both streams."""
    return (await run(box, shell(script), timeout=PATIENCE)).output


async def told_by(box: AgentBox, code: str) -> str:
    """Output of a Python program, on both streams."""
    return (await run(box, Command(argv=("python3", "-c", code)), timeout=PATIENCE)).output


@pytest.fixture
def say() -> Callable[[AgentBox, str], Awaitable[str]]:
    return said_in


@pytest.fixture
def tell() -> Callable[[AgentBox, str], Awaitable[str]]:
    return told_by


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """Serves, without isolation unless told otherwise; the client has the token."""
    return partial(served, tmp_path / "state")


@asynccontextmanager
async def served(
    state: Path, isolation: Isolation = Isolation.NONE
) -> AsyncIterator[tuple[Address, httpx.AsyncClient]]:
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(partial(serve, "127.0.0.1", 0, None, state, [], isolation, None))
        headers = {"authorization": f"Bearer {address.token}"}
        async with httpx.AsyncClient(base_url=address.url, headers=headers, timeout=40, trust_env=False) as client:
            yield address, client
        tasks.cancel_scope.cancel()
