"""A registry of ours, and a client of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.service.environments.images.credentials import Credentials
from orchestrator.service.environments.images.image_store import ImageStore
from orchestrator.service.environments.images.registry import Registries
from orchestrator.service.sandbox.user_namespace import IdMap, UserNamespace

from .registry_server import FakeRegistry, served


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
