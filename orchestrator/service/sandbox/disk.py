"""Ends boxes that take more of the disk than they may.

Its secret: it hardly ever looks. The file system's own count of free bytes and of free files, one call a second for all
boxes together, says how much can have been written at most since the last look; folders are walked only when that could
have made some box too large, and now and then because deletions in the same second hide writing. A long look is
followed by a pause, which ends early when much is written: else a box could make looks long, and write in the pauses. A
quota of the file system would be better and is rarely there; a sized tmpfs costs memory; a loop device costs a file
system each. So a box can be over its limit for about a second before it ends.
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

from orchestrator.service.sandbox.safe_fs import ENTRY, TooDeep, disk_usage
from orchestrator.service.sandbox.unlinked import Holder, TooMany

TICK = 1.0
#: Longest time between two looks, and how much longer than a look itself the pause after it is.
RELAXED, RATIO = 60.0, 20.0
#: Bytes by which a box may be beyond its limit because a pause is not over.
MUCH = 1 << 30


@dataclass(slots=True, kw_only=True)
class Watched:
    """One box: its folder, its limit in bytes, what to do when it is beyond, and when its folder is gone.

    `pids` are its processes of the moment, whose files belong to the host's user `owner`.
    """

    folder: Path
    limit: int
    exceeded: Callable[[str], None]
    lost: Callable[[str], None]
    pids: Callable[[], Iterable[int]]
    owner: int
    used: int = field(default=0)


class DiskWatch:
    """Watches the boxes' folders below one place; runs only while there are any."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._boxes: dict[Path, Watched] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, box: Watched) -> None:
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
            await anyio.sleep(TICK)
            now, before, last = anyio.current_time(), last, self._free()
            # What was freed in another second is not set off against it: it may have been somebody else's.
            written = [sum_ + max(0, a - b) for sum_, a, b in zip(written, before, last, strict=True)]
            lost = max(a - b for a, b in zip(free, last, strict=True))
            is_due = max(written) > self._headroom() or now - looked > RELAXED
            if (is_due and now > rested) or lost > self._headroom() + MUCH:
                free, written = last, [0, 0]
                await self._look()
                looked = anyio.current_time()
                rested = looked + (looked - now) * RATIO

    def _free(self) -> tuple[int, int]:
        """Bytes, and entries in bytes."""
        found = os.statvfs(self._place)
        return found.f_bavail * found.f_frsize, found.f_favail * ENTRY

    def _headroom(self) -> int:
        return min((box.limit - box.used for box in self._boxes.values()), default=0)

    async def _look(self) -> None:
        for box in list(self._boxes.values()):
            try:
                box.used = await anyio.to_thread.run_sync(_usage, box)
            except FileNotFoundError:
                if box.folder in self._boxes and not box.folder.exists():  # or it ended while we looked
                    self._end(box, box.lost, "its files are gone from the host")
            except (TooDeep, TooMany) as error:
                self._end(box, box.exceeded, f"its disk cannot be measured: {error}")
            else:
                if box.used > box.limit:
                    self._end(box, box.exceeded, f"out of disk: {box.used} bytes used, {box.limit} allowed")

    def _end(self, box: Watched, tell: Callable[[str], None], why: str) -> None:
        self._boxes.pop(box.folder, None)
        structlog.get_logger().warning("devbox.out_of_disk", folder=box.folder.name, why=why)
        tell(why)


def _usage(box: Watched) -> int:
    """Bytes that a box takes, with what no folder shows. Raises TooDeep, TooMany and FileNotFoundError. Blocking.

    A file that gets a name between the two halves is counted twice, so that too much is measured again.
    """
    holder = Holder(device=_device(box.folder), owner=box.owner)
    used = holder.usage(box.pids()) + disk_usage(box.folder)
    return used if used <= box.limit else min(used, holder.usage(box.pids()) + disk_usage(box.folder))


def _device(folder: Path) -> int:
    """The device of files below a folder, which need not be the folder's own where file systems are stacked."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_dev
    except OSError:  # no room for it
        return folder.stat().st_dev
