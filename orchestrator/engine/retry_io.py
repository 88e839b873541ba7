"""Small writes in the run folder that a disk may refuse for a while: full, read-only, or gone."""

from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import structlog

from orchestrator.core.errors import JournalError

T = TypeVar("T")

#: Seconds between two tries.
PAUSE_S: Final = 1.0
#: Seconds after which a disk that still refuses stops the sweep, where no deadline of a stage does.
PATIENCE_S: Final = 600.0


async def persist(write: Callable[[], T], *, patience: float = float("inf")) -> T:
    """Write until it works; `write` must be safe to repeat. The caller's deadline bounds it.

    Raises JournalError after `patience` seconds.
    """
    until = anyio.current_time() + patience
    while True:
        try:
            return write()
        except OSError as error:
            structlog.get_logger().warning("disk.refuses", error=str(error))
            if anyio.current_time() >= until:
                raise JournalError(f"The run folder cannot be written: {error}") from error
        await anyio.sleep(PAUSE_S)
