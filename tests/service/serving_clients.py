"""A service on a real socket and the published client that speaks to it; and a cache of images for such a service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from runloop_api_client import AsyncRunloop, DefaultAioHttpClient

from orchestrator.core.protocol import Isolation
from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.image_store import open_images
from orchestrator.service.environments.images.manifest import ours
from orchestrator.service.server import serve
from tests.caches import own_cache
from tests.images.base_images import base_image
from tests.images.packing import PackedImage


@asynccontextmanager
async def service(state: Path, isolation: Isolation) -> AsyncIterator[AsyncRunloop]:
    """Serve a state folder until the block ends, for the client that it gives."""
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(partial(serve, "127.0.0.1", 0, None, state, [], isolation, None))
        common: dict[str, Any] = {"bearer_token": address.token, "base_url": address.url, "max_retries": 0}
        async with AsyncRunloop(http_client=DefaultAioHttpClient(trust_env=False), **common) as client:
            yield client
        tasks.cancel_scope.cancel()


async def fill_cache(place: Path) -> Path:
    """Make a cache folder whose image store has `busybox`; skip the test where there is none."""
    PackedImage.of(base_image("busybox")).save(place / "busybox.tar", "busybox:latest")
    async with open_images(own_cache(place / "cache")) as store:
        archive = Archive.read(place / "busybox.tar", ours())
        for each in archive.images:
            await store.pull(each.reference, source=archive)
    return place / "cache"


async def said(client: AsyncRunloop, devbox: str, script: str) -> str:
    """The output of a script in a devbox."""
    return (await client.devboxes.execute_and_await_completion(devbox, command=script)).stdout or ""
