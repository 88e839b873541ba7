"""A registry of ours, and a client of it."""

from collections.abc import AsyncIterator

import pytest

from orchestrator.service.environments.images.credentials import Credentials
from orchestrator.service.environments.images.registry import Registries

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
