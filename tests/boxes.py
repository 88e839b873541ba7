"""A provider of boxes that several tests use, one after another."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from orchestrator.service.sandbox.base_provider import BaseProvider


@asynccontextmanager
async def lent(provider: BaseProvider[Any]) -> AsyncIterator[None]:
    """Afterwards its boxes are gone, with their files."""
    yield
    async with anyio.create_task_group() as stops:
        for box in list(provider._boxes.values()):
            stops.start_soon(box.stop)
    assert not provider._boxes
    assert not list(provider.state.glob("boxes/*")), "a box's files outlived it"
