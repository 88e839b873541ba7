"""A build cache that every service of one user on this machine shares.

A process locks the entry that it builds for itself alone (flock(2)), and each entry that it has used together with
others, for as long as it lives, so that nothing is removed under a devbox. The time of an entry's description is that
of the last use. Folder names and locks are the same in all versions, which may run side by side.
"""

import fcntl
import os
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from orchestrator.service.environments.build_cache import LOCK, BuildCache, Built, T
from orchestrator.service.sandbox.safe_fs import amount

#: Days after which an entry that no process used is removed.
KEPT_DAYS: Final = 30
_DAY_S: Final = 86_400


def cache_folder() -> Path:
    """Return the folder that this user's services share: $SWEEP_CACHE, else the usual place for caches."""
    if given := os.environ.get("SWEEP_CACHE"):
        return Path(given).absolute()
    usual = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(usual) if usual.startswith("/") else Path.home() / ".cache") / "sweep"


class UserCache(BuildCache[T]):
    """The entries below `cache/folder`, for all processes of a user.

    Methods raise OSError, for folders that others could put programs in and for file systems without locks too.
    """

    def __init__(
        self,
        cache: Path,
        folder: str,
        *,
        kind: str,
        tree: str,
        read: Callable[[Built], T],
        measure: Callable[[Path], list[int]] = amount,
    ) -> None:
        super().__init__(cache / folder, kind=kind, tree=tree, read=read, measure=measure)
        self._cache = cache
        self._held: dict[str, int] = {}

    def find(self, name: str) -> T | None:
        """Return the entry if it is there and whole; from then on no process removes it. Blocking."""
        with self._guard:
            lock = self._held.get(name)
            if lock is None and self._description(name).exists():
                self._check_private()
                lock = _lock(self._folder / name, fcntl.LOCK_SH)
            if lock is None:
                return None
            with suppress(FileNotFoundError):  # removed by hand
                os.utime(self._description(name))
            found = super().find(name)
            if found is None:
                self._held.pop(name, None)
                os.close(lock)
            else:
                self._held[name] = lock
        return found

    def reserve(self, name: str) -> ExitStack | None:
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._check_private()
        lock = _lock(self._folder / name, fcntl.LOCK_EX)
        if lock is None:
            return None
        reserved = ExitStack()
        reserved.callback(os.close, lock)
        return reserved

    def is_unused(self, place: Path) -> bool:
        try:
            return self._description(place.name).stat().st_mtime < time.time() - KEPT_DAYS * _DAY_S
        except (FileNotFoundError, NotADirectoryError):
            return place.is_dir()

    def _check_private(self) -> None:
        """Raises OSError for a folder that others could put programs in."""
        for folder in (self._cache, self._folder):
            found = folder.stat()
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
                raise PermissionError(
                    f"{folder} belongs to somebody else or can be written by others: `chmod 700` it if it is yours, "
                    "or set SWEEP_CACHE to another folder"
                )


def _lock(place: Path, kind: int) -> int | None:
    """Return the place's lock as an open file; None if another process holds it. Raises OSError."""
    while True:
        place.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # the place was removed meanwhile
            continue
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), (place / LOCK).stat()):
                    return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError as error:
            os.close(lock)
            raise OSError(
                f"{place} is on a file system that has no locks ({error.strerror}): set SWEEP_CACHE to a folder on "
                "another one, such as a local disk"
            ) from error
        os.close(lock)  # the file was removed before it was locked
