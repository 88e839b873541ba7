"""What processes hold of a disk though no folder shows it: files that were removed while open or mapped.

Its secret: /proc. A walk of a box's folders misses a file that a program opens, unlinks and writes to; the file lives
until its last descriptor and mapping are gone, and both are listed there. Files in memory (memfd, /dev/shm) are not the
disk's: they are told by their device. Mappings are read by who may (CAP_CHECKPOINT_RESTORE, root's); of processes that
closed themselves to an ordinary user's service (PR_SET_DUMPABLE) nothing is seen. Blocking; call from a worker thread.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

#: Descriptors and mappings of one box that are looked at, some 3 us each. Who holds more is not measured.
MOST = 1 << 20
_GONE = b" (deleted)\n"


class TooMany(OSError):
    """More than MOST descriptors and mappings are held."""

    def __init__(self) -> None:
        super().__init__(errno.EMFILE, f"its processes hold more than {MOST:,} descriptors and mappings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Whose unlinked files count: regular ones on `device` that belong to the host's user `owner`."""

    device: int
    owner: int

    def usage(self, pids: Iterable[int]) -> int:
        """Bytes that these processes hold, each file once. Raises TooMany. What ends meanwhile is not counted."""
        held: dict[int, int] = {}
        for number, found in enumerate(file for pid in pids for file in _held(pid)):
            if number >= MOST:
                raise TooMany
            if found is not None and self._counts(found):
                held[found.st_ino] = found.st_blocks * 512
        return sum(held.values())

    def _counts(self, found: os.stat_result) -> bool:
        is_unlinked = found.st_nlink == 0 and stat.S_ISREG(found.st_mode)
        return is_unlinked and found.st_dev == self.device and found.st_uid == self.owner


def descendants(pid: int) -> list[int]:
    """A process of the host and all below it, as they are now; what ends meanwhile may be among them."""
    found = [pid]
    for each in found:
        with suppress(OSError), os.scandir(f"/proc/{each}/task") as threads:
            for thread in threads:
                with suppress(OSError), open(f"{thread.path}/children") as children:  # noqa: PTH123
                    found += map(int, children.read().split())
    return found


def _held(pid: int) -> Iterator[os.stat_result | None]:
    """What a process has open or mapped; None for each that is no file on a disk, or gone."""
    for name in _names(f"/proc/{pid}/fd"):
        yield _stat(f"/proc/{pid}/fd/{name}")
    with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as mappings:  # noqa: PTH123
        for line in mappings:
            yield _mapped(pid, line) if line.endswith(_GONE) else None


def _mapped(pid: int, line: bytes) -> os.stat_result | None:
    start, _, end = line.partition(b" ")[0].partition(b"-")
    return _stat(f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}")


def _names(folder: str) -> Iterator[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - a path object takes as long as the call
    except OSError:
        return None
