"""Files that an agent left in its box's folders, handled from the host.

Its secret: nothing runs in the box any more, so what a path is does not change while it is looked at. But its author
may be hostile: a path is walked part by part, links lead where they would in the box and never out of it, and nothing
is opened that is not a regular file. `root` is the folder with the box's own folders, `path` one of the box.
Blocking; call from a worker thread.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final

from orchestrator.service.sandbox.safe_fs import mirror, remove, walk

_MOST_LINKS: Final = 40


def resolved(root: Path, path: str) -> Path | None:
    """Return the place on the host that a path leads to, all links followed; None if nowhere."""
    todo, place, links = [part for part in path.split("/") if part][::-1], root, 0
    while todo:
        part = todo.pop()
        if part == "..":
            place = place.parent if place != root else root
            continue
        if part == ".":
            continue
        try:
            mode = (place / part).lstat().st_mode
        except OSError:
            return None
        if stat.S_ISLNK(mode):
            links += 1
            target = os.readlink(place / part)  # noqa: PTH115
            if links > _MOST_LINKS:
                return None
            place = root if target.startswith("/") else place
            todo += [each for each in target.split("/") if each][::-1]
        else:
            place /= part
    return place


def open_up(root: Path, path: str) -> None:
    """Make sure that there is a folder which its owner can enter and write in. Raises OSError."""
    place = resolved(root, path)
    if place is None or not place.is_dir():
        place = _folder(root, path)
    place.chmod(stat.S_IMODE(place.lstat().st_mode) | 0o700)


def clear(root: Path, path: str) -> None:
    """Remove what is at a path, a link itself and not what it leads to. Raises OSError."""
    pure = PurePosixPath(path)
    parent = resolved(root, str(pure.parent))
    if parent is not None and parent.is_dir():
        _clear(parent / pure.name)


def empty(root: Path, path: str) -> None:
    """Put a new folder that everybody may write in where something is. Raises OSError."""
    pure = PurePosixPath(path)
    parent = _folder(root, str(pure.parent))
    _clear(parent / pure.name)
    _make(parent / pure.name, 0o777)


def take(root: Path, path: str, source: Path, *, exclude: Sequence[str] = (), is_copied: bool = False) -> None:
    """Move a file or folder of another box here, in the place of what is there, but for what a pattern of tar excludes.

    From another file system, or if it has to be, it is copied, as far as it is not the same already. Raises OSError.
    """
    pure = PurePosixPath(path)
    parent = _folder(root, str(pure.parent))
    target = parent / pure.name
    if not is_copied and source.lstat().st_dev == parent.stat().st_dev:
        _clear(target)
        source.rename(target)
    else:
        mirror(source, target)
    for each in _excluded(target, exclude):
        _clear(target / each)


def entries(place: Path, exclude: Sequence[str]) -> Iterator[str]:
    """Yield the entries below a file or folder, by their relative paths, but for what a pattern of tar excludes."""
    gone = set(_excluded(place, exclude))
    for each in _below(place):
        if gone.isdisjoint((each, *map(str, PurePosixPath(each).parents))):
            yield each


def _excluded(place: Path, exclude: Sequence[str]) -> Sequence[str]:
    return [
        each
        for each in (_below(place) if exclude else ())
        if any(fnmatchcase(part, pattern) for pattern in exclude for part in (each, PurePosixPath(each).name))
    ]


def _below(place: Path) -> Iterator[str]:
    return (each for each, _ in walk(place)) if place.is_dir() and not place.is_symlink() else iter(())


def put(root: Path, path: str, data: bytes, mode: int) -> str:
    """Write a file in the place of whatever stands there or in its way, and remove the byte code beside it.

    Returns the same path with the links on its way followed. Raises OSError.
    """
    pure = PurePosixPath(path)
    parent = _folder(root, str(pure.parent))
    for name in (pure.name, "__pycache__"):
        _clear(parent / name)
    target = parent / pure.name
    target.write_bytes(data)
    target.chmod(mode)
    _give(target)
    return f"/{target.relative_to(root)}"


def make_executable(root: Path, path: str) -> None:
    """Let everybody execute the file at a path, if there is one. Raises OSError."""
    place = resolved(root, path)
    if place is not None and place.is_file():
        place.chmod(stat.S_IMODE(place.lstat().st_mode) | 0o555)


def read(root: Path, path: str, limit: int) -> bytes | None:
    """Return the first bytes of a file; None where there is none, or something else. Raises OSError."""
    place = resolved(root, path)
    if place is None or not stat.S_ISREG(place.lstat().st_mode):
        return None
    place.chmod(stat.S_IMODE(place.lstat().st_mode) | 0o400)
    with place.open("rb") as file:
        return file.read(limit)


def _folder(root: Path, path: str) -> Path:
    """Return the folder at a path, made where it is missing; a file in its way is removed."""
    place = root
    for part in PurePosixPath(path).parts[1:]:
        found = resolved(root, str(PurePosixPath("/", place.relative_to(root), part)))
        if found is not None and found.is_dir():
            place = found
            continue
        _clear(place / part)
        _make(place / part, 0o755)
        place /= part
    return place


def _make(place: Path, mode: int) -> None:
    place.mkdir()
    place.chmod(mode)
    _give(place)


def _give(place: Path) -> None:
    """Give it to the owner of the folder around it."""
    owner = place.parent.lstat()
    os.chown(place, owner.st_uid, owner.st_gid)


def _clear(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        remove(place)
    else:
        place.unlink(missing_ok=True)
