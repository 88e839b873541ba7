"""The layers of an image, seen through each other as a kernel overlay shows them, without a mount.

Its secret: the marks in them. A device 0:0 hides what the layers below have of its name, and a folder with the
attribute `user.overlay.opaque` what they have in it. Nothing changes a layer, so its folders are looked at once, and a
path of folders that were looked at leads through no link. Blocking.
"""

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from orchestrator.service.sandbox.safe_fs import MAX_DEPTH

_OPAQUE: Final = "user.overlay.opaque"


def is_whiteout(found: os.stat_result) -> bool:
    """Tell whether an entry of a layer hides what the layers below have of its name."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(place: str) -> bool:
    """Tell whether a folder of a layer hides what the layers below have in it."""
    with suppress(OSError):
        return os.getxattr(place, _OPAQUE, follow_symlinks=False) == b"y"
    return False


class Layers:
    """Layers below `roots`, from the highest down; paths are relative to them, and links are not followed."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self._folders: dict[str, tuple[str, ...]] = {"": tuple(map(os.fspath, roots))}

    @property
    def is_any(self) -> bool:
        return bool(self._folders[""])

    def find(self, path: str) -> tuple[Path, os.stat_result] | None:
        """Return the root of the layer that an entry is seen in, and its status; None if it is not there."""
        for root in self._roots(posixpath.dirname(path)):
            with suppress(OSError):  # there is none, or the path is longer than a path can be
                found = os.lstat(f"{root}/{path}")
                return None if is_whiteout(found) else (Path(root), found)
        return None

    def walk(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        """Yield every entry below a folder, one before its content, down to MAX_DEPTH. Raises OSError."""
        seen: set[str] = set()
        for root in self._roots(folder):
            for name in sorted(os.listdir(f"{root}/{folder}")):  # noqa: PTH208
                path = f"{folder}/{name}" if folder else name
                if name not in seen and (entry := self.find(path)):
                    yield path, entry[1]
                    if stat.S_ISDIR(entry[1].st_mode) and path.count("/") < MAX_DEPTH:
                        yield from self.walk(path)
                seen.add(name)

    def _roots(self, folder: str) -> tuple[str, ...]:
        """Return the roots of the layers that have a part of a folder; none if it is no folder."""
        if folder not in self._folders:
            parts: list[str] = []
            for root in self._roots(posixpath.dirname(folder)):
                with suppress(OSError):
                    if not stat.S_ISDIR(os.lstat(f"{root}/{folder}").st_mode):
                        break
                    parts.append(root)
                    if is_opaque(f"{root}/{folder}"):
                        break
            self._folders[folder] = tuple(parts)
        return self._folders[folder]
