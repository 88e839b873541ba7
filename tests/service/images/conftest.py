"""A registry of ours, Debian's, a client of them, and the command that is one."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from orchestrator.common import sweep_command
from orchestrator.service.environments.images.credentials import Credentials
from orchestrator.service.environments.images.image_store import ImageStore
from orchestrator.service.environments.images.registry import Registries
from orchestrator.service.sandbox.user_namespace import IdMap, UserNamespace
from tests.images.debian_registry import DebianRegistry, debian_registry
from tests.images.token_server import TokenServer
from tests.serving import serving

from .registry_server import FakeRegistry, served


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """Types commands; their images are in `cache`."""

    cache: Path

    async def __call__(self, *words: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[bytes]:
        env = {**os.environ, "SWEEP_CACHE": str(self.cache), "HOME": str(self.cache), **environment}
        ended = await anyio.run_process([*sweep_command(), "images", *words], env=env, check=False)
        assert ended.returncode == status, ended
        assert b"Traceback" not in ended.stderr
        return ended

    async def listed(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in (await self("list", "--json")).stdout.splitlines()]


@pytest.fixture
def typed(tmp_path: Path) -> Typed:
    (tmp_path / "cache").mkdir(mode=0o700)
    return Typed(cache=tmp_path / "cache")


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with served(FakeRegistry()) as made:
        yield made


@pytest.fixture
async def registries() -> AsyncIterator[Registries]:
    async with Registries.open(credentials=Credentials(())) as made:
        made.pause_s = 0.001
        yield made


@pytest.fixture
async def namespace() -> AsyncIterator[UserNamespace]:
    made = await UserNamespace.make(IdMap.own())
    yield made
    made.close()


@pytest.fixture
def store(registries: Registries, namespace: UserNamespace, tmp_path: Path) -> ImageStore:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    return ImageStore(cache=cache, registries=registries, namespace=namespace)


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRegistry]:
    """One that lets everybody pull and push."""
    with debian_registry(tmp_path_factory.mktemp("registry") / "open") as registry:
        yield registry


@pytest.fixture(scope="module")
async def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DebianRegistry]:
    """One that wants tokens, with the server that has them."""
    place = tmp_path_factory.mktemp("registry")
    tokens = TokenServer.make(place / "tokens")
    async with serving(tokens.app) as url:
        with debian_registry(place / "closed", tokens=tokens, realm=f"{url}/token") as registry:
            yield registry
