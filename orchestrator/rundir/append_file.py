"""A file that only grows by our hand, and what becomes of a write that failed.

After a failed sync the kernel may have dropped what was written, and may call it clean: neither the file nor its
descriptor says what is on the disk. So whatever was written since the last success is cut off again, through a
descriptor that is opened anew, before it is written once more.

What somebody else did to the file is seen before each write, by its size: behind a gap, or behind lines of another
process, ours would make sense to nobody.
"""

import errno
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, Self

from orchestrator.core.errors import JournalError
from orchestrator.rundir.files import write_all

_BLOCK: Final = 1 << 20


class Sum:
    """How long some bytes are, and what they add up to."""

    __slots__ = ("_hash", "size")

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self._hash.update(data)

    def read(self, path: Path, end: int) -> Self:
        """Go on with a file's bytes up to an offset, or to its end if that comes first."""
        with path.open("rb", buffering=0) as file:
            file.seek(self.size)
            while block := file.read(min(_BLOCK, end - self.size)):
                self.add(block)
        return self

    def proof(self) -> "Proof":
        """This much, to compare with."""
        return Proof(size=self.size, sha256=self._hash.hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Tells some bytes from others: two that are equal are of the same bytes."""

    size: int
    sha256: str


class Changed(JournalError):
    """Somebody else wrote to the file, or cut it."""


class Tail:
    """The end of a file that is there already and has what `sum` says; anything behind that is cut off."""

    def __init__(self, path: Path, has: Sum) -> None:
        self.path = path
        #: What is known to be in the file.
        self.sum = has
        self._file: FileIO | None = None
        #: The file that had it all, if it was deleted: its content can still be had through its descriptor.
        self._deleted: FileIO | None = None
        self._inode: tuple[int, int] | None = None
        #: Another file that was found in its place: which, and how long.
        self._stranger: tuple[int, int, int] | None = None

    def append(self, data: bytes, *, sync: bool) -> None:
        """Add to the file, durably if asked. Raises OSError: nothing was added then, and it may be tried again.

        FileNotFoundError: the file was deleted, or is another one now. Raises Changed: it is not what we made of it.
        """
        file = self._file or self._open()
        try:
            size = os.fstat(file.fileno()).st_size
            if size != self.sum.size:
                raise self._changed(size)
            write_all(file, data)
            if sync:
                os.fsync(file.fileno())
            if not self._is_in_its_place(file):
                self._deleted, self._file = file, None
                raise self._gone()
        except (OSError, Changed):
            self._close_file()
            raise
        self.sum.add(data)

    def close(self) -> None:
        self._close_file()
        if self._deleted is not None:
            self._deleted.close()

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # it is the failure before this one that counts
                file.close()

    def _open(self) -> FileIO:
        try:
            self._file = file = FileIO(os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC), "a")
        except FileNotFoundError:
            raise self._gone() from None
        try:
            self._check(os.fstat(file.fileno()))
            os.ftruncate(file.fileno(), self.sum.size)
        except (OSError, Changed):
            self._close_file()
            raise
        if self._deleted is not None:
            self._deleted.close()
            self._deleted = None
        return file

    def _is_in_its_place(self, file: FileIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _check(self, status: os.stat_result) -> None:
        """Raises Changed if the file has not what was written; only one that is new needs to be read.

        Another file may be the right one on its way back: the first time it is FileNotFoundError.
        """
        inode = (status.st_dev, status.st_ino)
        is_new = self._inode not in {None, inode}
        if status.st_size < self.sum.size or (
            is_new and Sum().read(self.path, self.sum.size).proof() != self.sum.proof()
        ):
            before, self._stranger = self._stranger, (*inode, status.st_size)
            if is_new and before != self._stranger:
                raise FileNotFoundError(errno.ENOENT, "It is no longer the file that was written", str(self.path))
            raise self._changed(status.st_size)
        self._inode = inode

    def _changed(self, size: int) -> "Changed":
        return Changed(
            f"{self.path} was changed by somebody else while the sweep wrote it: it has {size} bytes, not the "
            f"{self.sum.size} that were written. The sweep leaves it as it is. Put it back from a copy, or have "
            f"`sweep repair {self.path.parent}` keep what can be read; then resume the sweep."
        )

    def _gone(self) -> FileNotFoundError:
        what = "It was deleted"
        if self._deleted is not None:
            what += f"; copy it back from /proc/{os.getpid()}/fd/{self._deleted.fileno()}"
        return FileNotFoundError(errno.ENOENT, what, str(self.path))
