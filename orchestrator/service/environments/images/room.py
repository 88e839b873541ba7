"""Room on the disk for images: how much they may take together, and what is about to be written.

Its secret: the notes. What a process is about to write is a file with the number of bytes, which it holds locked until
that is written. The note of a process that was killed is not locked, and goes at the next look. Processes look and
decide one at a time.
"""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Final, Self

from orchestrator.core.printable import byte_size
from orchestrator.service.environments.images.manifest import Descriptor, ImageError

#: Bytes of the disk, and parts of a hundred of it, that stay free; the smaller one counts.
FREE_BYTES: Final = 5_000_000_000
FREE_PERCENT: Final = 5
#: What a packed layer becomes, by a usual factor.
UNPACKED: Final = 3


class NoRoom(ImageError):
    """There is no room, and waiting makes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes that are about to be written: so many at `least`, and so many are `likely`."""

    least: int = 0
    likely: int = 0

    @classmethod
    def of(cls, blobs: Sequence[Descriptor]) -> Self:
        """Estimate what layers take that come as these blobs: each is there packed too, until it is unpacked."""
        sizes = [(blob.size, UNPACKED if blob.media_type.endswith(("gzip", "zstd")) else 1) for blob in blobs]
        return cls(least=sum(size for size, _ in sizes), likely=sum(size * (1 + factor) for size, factor in sizes))


class NoRoomYet(ImageError):
    """There is no room for a `need` before others end that use images; those of the layers `keep` are its own."""

    def __init__(self, message: str, need: Need, keep: Collection[str]) -> None:
        super().__init__(message)
        self.need = need
        self.keep = keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The room of the images below `folder`: `budget` bytes, or with None as much as the disk has."""

    folder: Path
    budget: int | None = None

    def shortage(self, taken: int, expected: int) -> int:
        """Return the bytes by which `expected` ones do not fit beside those that are `taken`; 0 or less if they do.

        Blocking. Raises OSError.
        """
        disk = shutil.disk_usage(self.folder)
        short = expected + min(FREE_BYTES, disk.total * FREE_PERCENT // 100) - disk.free
        return short if self.budget is None else max(short, taken + expected - self.budget)

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Be the only process that decides what goes, or gives an image a name. Blocking. Raises OSError."""
        notes = self.folder / "notes"
        notes.mkdir(mode=0o700, exist_ok=True)
        with (notes / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def expected(self) -> int:
        """Return the bytes of all notes; those of processes that are gone go. While `deciding`. Raises OSError."""
        total = 0
        for file in (self.folder / "notes").glob("*.bytes"):
            with suppress(FileNotFoundError), file.open() as note:
                try:
                    fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink()
                except BlockingIOError:
                    total += int(note.read() or 0)
        return total

    @contextmanager
    def noted(self, size: int) -> Iterator[None]:
        """Have others count these bytes meanwhile. Begin it while `deciding`. Raises OSError."""
        file = self.folder / "notes" / f"{os.getpid()}-{token_hex(4)}.bytes"
        with file.open("w") as note:
            fcntl.flock(note, fcntl.LOCK_EX)
            note.write(str(size))
            note.flush()
            try:
                yield
            finally:
                file.unlink(missing_ok=True)

    def __str__(self) -> str:
        return f"{self.folder}" if self.budget is None else f"--image-cache {byte_size(self.budget)}"
