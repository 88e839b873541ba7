"""Secrets that a service lists: the names that its owner gave out, and never a value."""

from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskStatus

from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import Isolation
from orchestrator.endpoint.gateway import Gateway
from orchestrator.service.address import Address
from orchestrator.service.server import serve

pytestmark = pytest.mark.anyio


async def test_a_service_lists_the_secrets_it_was_given_and_no_others(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:

        async def listen(*, task_status: TaskStatus[Address]) -> None:
            names = ("PATH", "HOME")
            await serve(
                "127.0.0.1", 0, None, tmp_path, [], Isolation.NONE, None, secret_names=names, task_status=task_status
            )

        address = await tasks.start(listen)
        async with Gateway.open(address.url, address.token, rate=None) as gateway:
            assert await gateway.secret_names() == {"PATH", "HOME"}
        tasks.cancel_scope.cancel()


async def test_a_secret_that_the_service_does_not_have_stops_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--secret NO_SUCH_SECRET: there is no such variable"):
        await serve("127.0.0.1", 0, None, tmp_path, [], Isolation.NONE, None, secret_names=["PATH", "NO_SUCH_SECRET"])
