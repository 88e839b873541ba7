"""Ends boxes that take more of the disk than they may.

Its secret: it hardly ever looks. The file system's own count of free bytes and of free files, one call a second for all
boxes together, says how much can have been written at most since the last look. Folders are walked only when that could
have made some box too large, and now and then because deletions in the same second hide writing. A long look is
followed by a pause, which ends early when much is written: else a box could make looks long, and write in the pauses. A
quota of the file system would be better but is rarely available; a sized tmpfs costs memory; a loop device costs a file
system for each box. So a box can be over its limit for about a second before it ends.

A walk of a box's folders misses a file that a program opens, unlinks and writes to; the file lives until its last
descriptor and mapping are gone, and /proc lists both. Files in memory (memfd, /dev/shm) do not take the disk: their
device tells them apart. Only a process with CAP_CHECKPOINT_RESTORE, such as root's, may read mappings, and a process
can close itself to an ordinary user's service (PR_SET_DUMPABLE).
"""

import asyncio
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import structlog

from orchestrator.service.sandbox.safe_fs import ENTRY_BYTES, TooDeep, disk_usage

TICK_S = 1.0
#: Longest time between two looks.
MAX_PAUSE_S = 60.0
#: Length of the pause after a look, in lengths of the look.
PAUSE_RATIO = 20.0
#: The part of the headroom that, when it may be written, asks for a look: deletions of others hide the rest.
NEAR: Final = 0.9
#: Bytes by which a box may exceed its limit because a pause is not over.
MAX_OVERRUN_BYTES = 1 << 30
#: Descriptors and mappings of one box that are looked at, some 3 us each. A box that holds more is not measured.
MAX_HELD_FILES = 1 << 20
_UNLINKED_MAPPING = b" (deleted)\n"


class TooManyFiles(OSError):
    """A box holds more than MAX_HELD_FILES descriptors and mappings."""

    def __init__(self) -> None:
        super().__init__(errno.EMFILE, f"its processes hold more than {MAX_HELD_FILES:,} descriptors and mappings")


@dataclass(slots=True, kw_only=True)
class WatchedBox:
    """One box: its folder, its limit in bytes, what to call when it exceeds it, and when its folder is gone.

    `pids` returns its processes of the moment, whose files belong to the host's users `owners`. `view` is the folder as
    its processes see it, if that is on another device.
    """

    folder: Path
    limit: int
    exceeded: Callable[[str], None]
    lost: Callable[[str], None]
    pids: Callable[[], Iterable[int]]
    owners: range
    view: Path | None = None
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
            is_due = max(written) > headroom * NEAR or now - looked > MAX_PAUSE_S
            if (is_due and now > rested) or lost > headroom + MAX_OVERRUN_BYTES:
                free, written = last, [0, 0]
                for box in list(self._boxes.values()):
                    await self._look(box)
                looked = anyio.current_time()
                rested = looked + (looked - now) * PAUSE_RATIO

    def _free(self) -> tuple[int, int]:
        """Return the free bytes, and the free entries in bytes; a file system that does not tell counts as full."""
        try:
            found = os.statvfs(self._place)
        except OSError:
            return 0, 0
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
        except OSError as error:  # the service has no descriptor free, or its disk fails: the next look may succeed
            structlog.get_logger().warning("devbox.disk_not_measured", folder=box.folder.name, error=str(error))
            return
        self._boxes.pop(box.folder, None)
        structlog.get_logger().warning("devbox.out_of_disk", folder=box.folder.name, why=why)
        tell(why)


def measure(box: WatchedBox) -> int:
    """Bytes that a box takes, unlinked files included. Raises TooDeep, TooManyFiles and FileNotFoundError. Blocking.

    A file that gets a name between the two halves is counted twice, so a result above the limit is measured again.
    """
    try:
        with tempfile.TemporaryFile(dir=box.view or box.folder) as file:
            device = os.fstat(file.fileno()).st_dev  # not always the folder's own, where file systems are stacked
    except OSError:  # the disk is full
        device = (box.view or box.folder).stat().st_dev
    used = unlinked_usage(box.pids(), device=device, owners=box.owners) + disk_usage(box.folder)
    if used <= box.limit:
        return used
    return min(used, unlinked_usage(box.pids(), device=device, owners=box.owners) + disk_usage(box.folder))


def unlinked_usage(pids: Iterable[int], *, device: int, owners: range) -> int:
    """Bytes of the unlinked files that the processes hold, each file once; of a process that ends meanwhile, none.

    Only regular files on `device` that belong to the host's users `owners` count. Raises TooManyFiles.
    """
    held: dict[int, int] = {}
    for number, path in enumerate(path for pid in pids for path in _held(pid)):
        if number >= MAX_HELD_FILES:
            raise TooManyFiles
        if path is None:
            continue
        try:
            found = os.stat(path)  # noqa: PTH116 - a path object takes as long as the call
        except OSError:
            continue
        is_unlinked = found.st_nlink == 0 and stat.S_ISREG(found.st_mode)
        if is_unlinked and found.st_dev == device and found.st_uid in owners:
            held[found.st_ino] = found.st_blocks * 512
    return sum(held.values())


def _held(pid: int) -> Iterator[str | None]:
    """Paths of all that a process has open or mapped; None for a mapping of a file that has a name, or of none."""
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            yield entry.path
    with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as mappings:  # noqa: PTH123
        for line in mappings:
            start, _, end = line.partition(b" ")[0].partition(b"-")
            is_unlinked = line.endswith(_UNLINKED_MAPPING)
            yield f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}" if is_unlinked else None
