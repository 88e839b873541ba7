"""An archive out of a devbox, unpacked at home: nothing in it is trusted.

Only what is a regular file comes out, as a new file below one folder: no link, no device, no owner, no mode, no path
that climbs or begins at the root. What is written has no secrets, in names neither, and stays within the limits.
Blocking; call from a worker thread.
"""

import os
import shutil
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from orchestrator.engine.redact import Redactor

_PIECE: Final = 1 << 20
_LONGEST_NAME: Final = 255
_DEEPEST: Final = 64


@dataclass(slots=True, kw_only=True)
class Limits:
    """Of one attempt, in bytes; `room` and `files` are what is left of it, and shrink."""

    file: int = 64 << 20
    room: int = 256 << 20
    files: int = 10_000


def unpack(archive: IO[bytes], folder: Path, limits: Limits, redactor: Redactor) -> list[str]:
    """Unpack a tar archive, whole or torn, over nothing that is there; returns what is left out, and why.

    Raises OSError.
    """
    left_out, size = [], archive.seek(0, os.SEEK_END)
    archive.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
    is_whole = not any(archive.read())  # it ends with two empty blocks
    archive.seek(0)
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for member in tar:
                reason = "" if member.isdir() else _take(tar, member, folder, limits, redactor)
                left_out += [f"{redactor.text(_name(member))}: {reason}"] if reason else []
    except (tarfile.TarError, EOFError, ValueError, OverflowError):
        is_whole = False
    return left_out if is_whole else [*left_out, "the archive is torn, and what came after is missing"]


def _name(member: tarfile.TarInfo) -> str:
    return member.name.encode("utf-8", "replace").decode()


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, limits: Limits, redactor: Redactor) -> str:
    """Unpack one member; returns why not, or nothing."""
    parts = [part for part in redactor.text(_name(member)).split("/") if part not in {"", "."}]
    if reason := _refusal(member, parts, limits):
        return reason
    path, source = folder.joinpath(*parts), tar.extractfile(member)
    assert source is not None, "it is a regular file"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with source, path.open("xb") as target:
            _copy(source, target, limits, redactor)
    except (FileExistsError, NotADirectoryError) as error:
        return f"{error.strerror} here"
    limits.files -= 1
    with suppress(OSError, OverflowError):  # a time that no clock can show
        os.utime(path, (member.mtime, member.mtime))
    return ""


def _refusal(member: tarfile.TarInfo, parts: list[str], limits: Limits) -> str:
    """Why a member stays where it is; nothing if it does not."""
    if not member.isreg():
        return "no regular file"
    if not parts or ".." in parts or len(parts) > _DEEPEST or any(map(_is_unfit, parts)):
        return "no fit name for a file here"
    if member.size > limits.file:
        return f"{member.size:,} bytes, and {limits.file:,} is the limit for one file"
    if member.size > limits.room:
        return f"{member.size:,} bytes, and there is room for {limits.room:,} more"
    return "" if limits.files > 0 else "there are too many files"


def _is_unfit(part: str) -> bool:
    return "\0" in part or len(part.encode("utf-8", "replace")) > _LONGEST_NAME


def _copy(source: IO[bytes], target: IO[bytes], limits: Limits, redactor: Redactor) -> None:
    masked = redactor.stream()
    while piece := source.read(_PIECE):
        limits.room -= len(piece)
        target.write(masked.feed(piece))
    target.write(masked.finish())


def join(source: IO[bytes], target: Path, limits: Limits, redactor: Redactor) -> list[str]:
    """Write one file that came by itself; returns what is left out of it. Raises OSError."""
    masked, room = redactor.stream(), min(limits.file, limits.room)
    with target.open("wb") as file:
        while room > 0 and (piece := source.read(min(room, _PIECE))):
            room -= len(piece)
            limits.room -= len(piece)
            file.write(masked.feed(piece))
        file.write(masked.finish())
    return ["too large, its beginning is here"] if source.read(1) else []


def clear(path: Path) -> None:
    """Remove what an earlier process may have brought home. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
