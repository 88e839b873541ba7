"""A registry of ours, Debian's, a client of them, and the command that is one."""

import os
import subprocess
from base64 import b64encode
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
from tests.images.token_server import PASSWORD, USER, TokenServer
from tests.serving import serving

from .registry_server import FakeRegistry, served

#: The password of the tests' user, as htpasswd(1) keeps it.
HASHED = f"{USER}:$2b$04$rGZtOae8IJD7tGvKpstCf.nNX3a4e9R9Uiq3OaXPuXnjtSunwox7O\n"


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
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenServer:
    return TokenServer.make(tmp_path_factory.mktemp("tokens") / "server")


@pytest.fixture(scope="module")
async def closed_registry(
    tokens: TokenServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DebianRegistry]:
    """One that wants tokens."""
    place = tmp_path_factory.mktemp("registry") / "closed"
    async with serving(tokens.app) as url:
        auth = tokens.settings(f"{url}/token")
        with debian_registry(place, auth=auth, authorization=tokens.authorization) as registry:
            yield registry


@pytest.fixture(scope="module")
def simple_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRegistry]:
    """One that wants a name and a password with each request."""
    place = tmp_path_factory.mktemp("registry")
    (place / "passwords").write_text(HASHED)
    auth = {"htpasswd": {"realm": "tests", "path": str(place / "passwords")}}
    given = f"Basic {b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
    with debian_registry(place / "simple", auth=auth, authorization=lambda _: given) as registry:
        yield registry
