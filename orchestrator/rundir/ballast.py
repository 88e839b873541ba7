"""Room on the disk that is held in reserve: given up when there is no other, so that what is in flight is written."""

import errno
import os
from pathlib import Path
from typing import Final

from orchestrator.rundir.files import write_all

BALLAST: Final = "ballast"
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_BLOCK: Final = 1 << 20


class Ballast:
    """A file of so many bytes; of none, it is always there."""

    def __init__(self, folder: Path, size: int) -> None:
        self._path = folder / BALLAST
        self._size = size
        self.is_there = size == 0

    def make(self) -> None:
        """Take hold of the room, if there is that much and a little more. Raises OSError if not."""
        disk = os.statvfs(self._path.parent)
        if disk.f_bavail * disk.f_frsize < self._size + _BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        block = os.urandom(_BLOCK)  # written, and not to be compressed: not every file system can reserve
        try:
            with self._path.open("wb", buffering=0) as file:
                for start in range(0, self._size, _BLOCK):
                    write_all(file, block[: self._size - start])
        except OSError:
            self.give_up()
            raise
        self.is_there = True

    def give_up(self) -> bool:
        """Let go of the room; whether that made any."""
        self.is_there = self._size == 0
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
