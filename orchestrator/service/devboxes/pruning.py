"""What commands print does not stay for ever: a day after its devbox has ended it goes, and with it the devbox's log.

That of a sweep's devbox goes as soon as its run is completed or canceled (`Executions.forget`).

What is known of the devbox and its executions stays in the store; only what they printed is gone.
"""

import shutil
import sqlite3
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import structlog

from orchestrator.service.devboxes.states import is_ended
from orchestrator.service.errors import Unwritable
from orchestrator.service.store import DEVBOXES, Store, now_ms

#: Milliseconds for which output is kept.
KEPT: Final = 24 * 3600 * 1000
_PAUSE: Final = 3600.0


async def prune_hourly(store: Store, output: Path) -> None:
    """Remove what is old enough from the folder of all output, now and every hour."""
    while True:
        try:
            await prune(store, output)
        except (Unwritable, OSError) as error:
            structlog.get_logger().warning("output.not_pruned", error=str(error))
        await anyio.sleep(_PAUSE)


async def prune(store: Store, output: Path) -> None:
    """Remove the folders of devboxes that ended long ago. Raises Unwritable and OSError."""
    names = await anyio.to_thread.run_sync(_folders, output)
    old = await store.read(partial(_old, names=names, before=now_ms() - KEPT))
    for name in old:
        await anyio.to_thread.run_sync(shutil.rmtree, output / name)
    if old:
        structlog.get_logger().info("output.pruned", devboxes=len(old))


def _folders(output: Path) -> list[str]:
    return [folder.name for folder in output.iterdir()] if output.exists() else []


def _old(db: sqlite3.Connection, names: list[str], before: int) -> list[str]:
    found = [(name, DEVBOXES.find(db, name)) for name in names]
    return [name for name, devbox in found if devbox and is_ended(devbox) and devbox["end_time_ms"] < before]
