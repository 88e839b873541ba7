"""Ends boxes that take more of the disk than they may.

Its secret: it hardly ever looks. The file system's own count of free bytes and of free files, one call a second for all
boxes together, says how much can have been written at most since the last look. Folders are walked only when that could
have made some box too large, and now and then because deletions in the same second hide writing. A long look is
followed by a pause, which ends early when much is written: else a box could make looks long, and write in the pauses. A
quota of the file system would be better but is rarely available; a sized tmpfs costs memory; a loop device costs a file
system for each box. So a box can be over its limit for about a second before it ends.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from orchestrator.service.sandbox.procfs import TooManyFiles, unlinked_usage
from orchestrator.service.sandbox.safe_fs import ENTRY_BYTES, TooDeep, disk_usage

TICK_S = 1.0
#: Longest time between two looks.
MAX_PAUSE_S = 60.0
#: Length of the pause after a look, in lengths of the look.
PAUSE_RATIO = 20.0
#: Bytes by which a box may exceed its limit because a pause is not over.
MAX_OVERRUN_BYTES = 1 << 30


@dataclass(slots=True, kw_only=True)
class WatchedBox:
    """One box: its folder, its limit in bytes, what to call when it exceeds it, and when its folder is gone.

    `pids` returns its processes of the moment, whose files belong to the host's user `owner`.
    """

    folder: Path
    limit: int
    exceeded: Callable[[str], None]
    lost: Callable[[str], None]
    pids: Callable[[], Iterable[int]]
    owner: int
    used: int = field(default=0)


class DiskWatch:
    """Watches the boxes' folders below `place`; runs only while there are any."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._boxes: dict[Path, WatchedBox] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, box: WatchedBox) -> None:
        """Watch a box that has used `box.used` bytes so far."""
        self._boxes[box.folder] = box
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="devbox-disk")

    async def discard(self, folder: Path) -> None:
        self._boxes.pop(folder, None)
        if not self._boxes:
            await self.close()

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        free = last = self._free()
        looked, rested, written = anyio.current_time(), 0.0, [0, 0]
        while True:
            await anyio.sleep(TICK_S)
            now, before, last = anyio.current_time(), last, self._free()
            # Space freed in another second is not set off against it: it may have been another program's.
            written = [sum_ + max(0, a - b) for sum_, a, b in zip(written, before, last, strict=True)]
            lost = max(a - b for a, b in zip(free, last, strict=True))
            headroom = min((box.limit - box.used for box in self._boxes.values()), default=0)
            is_due = max(written) > headroom or now - looked > MAX_PAUSE_S
            if (is_due and now > rested) or lost > headroom + MAX_OVERRUN_BYTES:
                free, written = last, [0, 0]
                for box in list(self._boxes.values()):
                    await self._look(box)
                looked = anyio.current_time()
                rested = looked + (looked - now) * PAUSE_RATIO

    def _free(self) -> tuple[int, int]:
        """Free bytes, and free entries in bytes."""
        found = os.statvfs(self._place)
        return found.f_bavail * found.f_frsize, found.f_favail * ENTRY_BYTES

    async def _look(self, box: WatchedBox) -> None:
        tell = box.exceeded
        try:
            box.used = await anyio.to_thread.run_sync(measure, box)
            if box.used <= box.limit:
                return
            why = f"out of disk: {box.used} bytes used, {box.limit} allowed"
        except FileNotFoundError:
            if box.folder not in self._boxes or box.folder.exists():  # it ended while we looked
                return
            tell, why = box.lost, "its files are gone from the host"
        except (TooDeep, TooManyFiles) as error:
            why = f"its disk cannot be measured: {error}"
        self._boxes.pop(box.folder, None)
        structlog.get_logger().warning("devbox.out_of_disk", folder=box.folder.name, why=why)
        tell(why)


def measure(box: WatchedBox) -> int:
    """Bytes that a box takes, unlinked files included. Raises TooDeep, TooManyFiles and FileNotFoundError. Blocking.

    A file that gets a name between the two halves is counted twice, so a result above the limit is measured again.
    """
    try:
        with tempfile.TemporaryFile(dir=box.folder) as file:
            device = os.fstat(file.fileno()).st_dev  # not always the folder's own, where file systems are stacked
    except OSError:  # the disk is full
        device = box.folder.stat().st_dev
    used = unlinked_usage(box.pids(), device=device, owner=box.owner) + disk_usage(box.folder)
    if used <= box.limit:
        return used
    return min(used, unlinked_usage(box.pids(), device=device, owner=box.owner) + disk_usage(box.folder))
