"""A state that cannot be written must not leave devboxes or commands that look alive."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from orchestrator.service.devboxes.executions import CommandRequest, Executions, ExecutionView
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.requests import DevboxRequest
from orchestrator.service.errors import Unwritable, WaitExpired
from orchestrator.service.records import DevboxRecord
from orchestrator.service.sandbox.prepared import Preparation, Prepared
from orchestrator.service.sandbox.process_provider import ProcessProvider
from orchestrator.service.store import DEVBOXES, EXECUTIONS, Store

pytestmark = pytest.mark.anyio
T = TypeVar("T")


class FullDisk(Store):
    """A store on a disk that can be full; reading goes on."""

    is_full = False

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        if self.is_full:
            raise Unwritable("No space left on device.")
        return await super().write(change)


async def _blueprints(_blueprint_id: str, _preparation: Preparation) -> Prepared:
    return Prepared()


async def test_an_end_that_cannot_be_written_is_written_as_soon_as_it_can(tmp_path: Path) -> None:
    provider = ProcessProvider(tmp_path / "devboxes")
    async with FullDisk.open(tmp_path / "service.sqlite") as store:
        assert isinstance(store, FullDisk)
        fleet = Fleet(store=store, provider=provider, state=tmp_path, blueprints=_blueprints)
        executions = Executions(store, fleet, tmp_path)
        async with fleet:
            devbox = await fleet.create(DevboxRequest(), None)
            await fleet.wait_for_status(devbox.id, ["running"], 20)
            identity = await executions.start(devbox.id, CommandRequest(command="sleep 1000"), None)
            with fleet.using(devbox.id) as box:
                store.is_full = True
                await box.stop()
            with pytest.raises(WaitExpired):
                await fleet.wait_for_status(devbox.id, ["failure"], 0.3)
            store.is_full = False
            ended = await fleet.wait_for_status(devbox.id, ["failure"], 20)
            completed = await executions.wait(devbox.id, identity, timeout=20)
    assert ended.failure_reason == "health_check_failed"
    assert completed.exit_status == 137
    await provider.close()


async def test_a_service_that_ends_answers_who_waits_for_a_command(tmp_path: Path) -> None:
    provider = ProcessProvider(tmp_path / "devboxes")
    seen, shut = list[ExecutionView](), list[DevboxRecord]()
    async with Store.open(tmp_path / "service.sqlite") as store:
        fleet = Fleet(store=store, provider=provider, state=tmp_path, blueprints=_blueprints)
        executions = Executions(store, fleet, tmp_path)

        async def wait() -> None:
            seen.append(await executions.wait(devbox.id, identity, timeout=20))
            shut.append(await fleet.wait_for_status(devbox.id, ["shutdown"], 20))

        async with anyio.create_task_group() as waits, fleet:
            devbox = await fleet.create(DevboxRequest(), None)
            await fleet.wait_for_status(devbox.id, ["running"], 20)
            identity = await executions.start(devbox.id, CommandRequest(command="sleep 1000"), None)
            waits.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
        rows = await store.read(lambda db: (DEVBOXES.select(db, {}), EXECUTIONS.select(db, {})))
    assert [completed.exit_status for completed in seen] == [137]
    assert len(shut) == 1
    devboxes, commands = rows
    assert ([row.status for row in devboxes], [row.status for row in commands]) == (["shutdown"], ["completed"])
    await provider.close()
