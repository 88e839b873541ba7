"""A file that only we append to, the recovery from a failed write, and the ballast for a full disk.

After a failed sync the kernel may have dropped the data, and may call it clean: neither the file nor its descriptor
says what is on the disk. So everything written since the last success is cut off again, through a descriptor that is
opened anew, before it is written once more.

Changes by another process are seen before each write, by the file's size: after a gap, or after lines of another
process, our lines could not be read.
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

BALLAST: Final = "ballast"
#: The errors of a full disk.
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_BLOCK_BYTES: Final = 1 << 20


class Checksum:
    """The length and the hash of bytes that are added one after the other."""

    __slots__ = ("_hash", "size")

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self._hash.update(data)

    def read(self, path: Path, end: int) -> Self:
        """Add a file's bytes from `size` to an offset, or to the file's end if that comes first."""
        with path.open("rb", buffering=0) as file:
            file.seek(self.size)
            while block := file.read(min(_BLOCK_BYTES, end - self.size)):
                self.add(block)
        return self

    def digest(self) -> "Digest":
        return Digest(size=self.size, sha256=self._hash.hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """The length and the SHA-256 of some bytes: equal digests are of equal bytes."""

    size: int
    sha256: str


class FileChanged(JournalError):
    """Another process wrote to the file, or cut it."""


class AppendFile:
    """A file that is there already, with the content of `checksum`; anything after that is cut off."""

    def __init__(self, path: Path, checksum: Checksum) -> None:
        self.path = path
        #: The checksum of the content that the file is known to have.
        self.checksum = checksum
        self._file: FileIO | None = None
        #: The complete file, if it was deleted: its content can still be read through its descriptor.
        self._deleted: FileIO | None = None
        self._inode: tuple[int, int] | None = None
        #: Device, inode and size of another file that was found in its place.
        self._stranger: tuple[int, int, int] | None = None

    def append(self, data: bytes, *, sync: bool) -> None:
        """Append to the file, durably with `sync`. After OSError nothing was added, and it may be tried again.

        Raises FileNotFoundError if the file was deleted or replaced, FileChanged if its content is not ours.
        """
        file = self._file or self._open()
        try:
            size = os.fstat(file.fileno()).st_size
            if size != self.checksum.size:
                raise self._changed(size)
            write_all(file, data)
            if sync:
                os.fsync(file.fileno())
            is_in_its_place = False
            with suppress(FileNotFoundError):
                is_in_its_place = os.path.samestat(os.fstat(file.fileno()), self.path.stat())
            if not is_in_its_place:
                self._deleted, self._file = file, None
                raise self._gone()
        except (OSError, FileChanged):
            self._close_file()
            raise
        self.checksum.add(data)

    def close(self) -> None:
        self._close_file()
        if self._deleted is not None:
            self._deleted.close()

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # the failure before this one is the one to report
                file.close()

    def _open(self) -> FileIO:
        """Open the file, and cut off anything after the content that was written.

        Raises FileChanged if it has not that content; only a new file needs to be read. Another file may be a copy that
        is being put back: the first time that is FileNotFoundError.
        """
        try:
            self._file = file = FileIO(os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC), "a")
        except FileNotFoundError:
            raise self._gone() from None
        try:
            status = os.fstat(file.fileno())
            inode, size = (status.st_dev, status.st_ino), self.checksum.size
            is_new = self._inode not in {None, inode}
            if status.st_size < size or (
                is_new and Checksum().read(self.path, size).digest() != self.checksum.digest()
            ):
                before, self._stranger = self._stranger, (*inode, status.st_size)
                if is_new and before != self._stranger:
                    raise FileNotFoundError(errno.ENOENT, "It is no longer the file that was written", str(self.path))
                raise self._changed(status.st_size)
            self._inode = inode
            os.ftruncate(file.fileno(), size)
        except (OSError, FileChanged):
            self._close_file()
            raise
        if self._deleted is not None:
            self._deleted.close()
            self._deleted = None
        return file

    def _changed(self, size: int) -> "FileChanged":
        return FileChanged(
            f"{self.path} was changed by somebody else while the sweep wrote it: it has {size} bytes, not the "
            f"{self.checksum.size} that were written. The sweep leaves it as it is. Put it back from a copy, or have "
            f"`sweep repair {self.path.parent}` keep what can be read; then resume the sweep."
        )

    def _gone(self) -> FileNotFoundError:
        what = "It was deleted"
        if self._deleted is not None:
            what += f"; copy it back from /proc/{os.getpid()}/fd/{self._deleted.fileno()}"
        return FileNotFoundError(errno.ENOENT, what, str(self.path))


class Ballast:
    """Room on the disk held in reserve, in a file of `size` bytes: given up when the disk is full, for data in flight.

    With a size of 0 it is always there.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._path = folder / BALLAST
        self._size = size
        self.is_there = size == 0

    def make(self) -> None:
        """Reserve the room, if there is that much and a little more. Raises OSError if not."""
        disk = os.statvfs(self._path.parent)
        if disk.f_bavail * disk.f_frsize < self._size + _BLOCK_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        block = os.urandom(_BLOCK_BYTES)  # written, and incompressible: not every file system can reserve
        try:
            with self._path.open("wb", buffering=0) as file:
                for start in range(0, self._size, _BLOCK_BYTES):
                    write_all(file, block[: self._size - start])
        except OSError:
            self.give_up()
            raise
        self.is_there = True

    def give_up(self) -> bool:
        """Delete the file. Returns true if that made room."""
        self.is_there = self._size == 0
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
