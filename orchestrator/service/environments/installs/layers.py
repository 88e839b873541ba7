"""The cache of finished installs: folders that every service of this user on this machine shares.

A layer is `files/` with a description beside it, which is written last: without it nothing is a layer, whatever a
killed service left. Whoever makes one holds its lock alone; whoever has used one holds it with others for as long as
the process lives, so that nothing is removed under a devbox. The description's time is that of the last use.

As environments do, it says how much it holds, and that is compared the first time a process uses it. Blocking; call
from a worker thread.
"""

import fcntl
import os
import stat
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import orjson
import structlog

from orchestrator.service.sandbox.safe_fs import amount, remove

#: Days after which a layer that nobody used is removed.
KEPT_DAYS: Final = 30
_FACTS: Final = "install.json"
_FILES: Final = "files"
_LOCK: Final = "lock"
_MAKING: Final = "making"


def cache_folder() -> Path:
    """Where this user's services keep what they share: $SWEEP_CACHE, else the usual place for caches."""
    if given := os.environ.get("SWEEP_CACHE"):
        return Path(given).absolute()
    usual = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(usual) if usual.startswith("/") else Path.home() / ".cache") / "sweep"


class Layers:
    """The layers below `cache`; each has a name of letters and digits. Methods raise OSError."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._folder = cache / "installs"
        self._held: dict[str, int] = {}
        self._whole = threading.Lock()

    def use(self, name: str) -> Path | None:
        """The files of a layer, if it is there and whole; from then on nobody removes them."""
        place = self._folder / name
        with self._whole:
            if name not in self._held and not self._hold(place):
                return None
            try:
                os.utime(place / _FACTS)
            except FileNotFoundError:  # removed by hand
                os.close(self._held.pop(name))
                return None
        return place / _FILES

    def _hold(self, place: Path) -> bool:
        if not (place / _FACTS).exists():
            return False
        _check_private(self._cache, self._folder)
        lock = _lock(place, fcntl.LOCK_SH)
        if lock is None:
            return False
        if not _is_whole(place):
            os.close(lock)
            return False
        self._held[place.name] = lock
        return True

    def reserve(self, name: str) -> int | None:
        """The right to make a layer, to be given back with os.close; None while another process has it or uses it."""
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        _check_private(self._cache, self._folder)
        return _lock(self._folder / name, fcntl.LOCK_EX)

    def open(self, name: str) -> Path:
        """An empty folder to make a layer in; what was left of others is removed. For who has reserved it."""
        place = self._folder / name
        (place / _FACTS).unlink(missing_ok=True)
        for left in (place / _FILES, place / _MAKING):
            remove(left)
        (place / _MAKING).mkdir(mode=0o700)
        return place / _MAKING

    def keep(self, name: str, tree: Path, facts: Mapping[str, Any]) -> None:
        """Make a tree, which is in the folder that was opened, the layer."""
        place = self._folder / name
        _open_up(tree)
        tree.rename(place / _FILES)
        draft = place / _MAKING / _FACTS
        with draft.open("wb") as file:
            file.write(orjson.dumps({**facts, "amount": amount(place / _FILES)}, option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(place / _FACTS)

    def clear(self, name: str) -> None:
        """Remove what was opened."""
        remove(self._folder / name / _MAKING)

    def prune(self) -> None:
        """Remove the layers that nobody has used for KEPT_DAYS, and all that those left who could not finish theirs."""
        places = self._folder.iterdir() if self._folder.is_dir() else ()
        for place in filter(_is_unused, places):
            try:
                _remove_unused(place)
            except OSError as error:
                structlog.get_logger().warning("install.not_removed", folder=str(place), error=str(error))


def _check_private(*folders: Path) -> None:
    """Raises OSError for a folder that others could put programs in."""
    for folder in folders:
        found = folder.stat()
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise PermissionError(
                f"{folder} belongs to somebody else or can be written by others: `chmod 700` it if it is yours, "
                "or set SWEEP_CACHE to another folder"
            )


def _lock(place: Path, kind: int) -> int | None:
    """The place's lock as an open file; None if others hold it. Raises OSError that says what to do without locks."""
    while True:
        place.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), (place / _LOCK).stat()):
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
        os.close(lock)  # it was removed between the two, with its place


def _is_whole(place: Path) -> bool:
    try:
        facts = orjson.loads((place / _FACTS).read_bytes())
        if facts["amount"] == amount(place / _FILES):
            return True
        error: Exception | str = "it does not hold what it should"
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as damage:
        error = damage
    structlog.get_logger().warning("install.torn", folder=str(place), error=str(error))
    return False


def _remove_unused(place: Path) -> None:
    lock = _lock(place, fcntl.LOCK_EX)
    if lock is None:
        return
    try:
        if _is_unused(place):
            (place / _FACTS).unlink(missing_ok=True)
            gone = place.with_name(f"{place.name}-{token_hex(4)}")
            place.rename(gone)  # whoever makes one at this place meanwhile finds his own lock, and his files stay
            remove(gone)
            structlog.get_logger().info("install.pruned", folder=str(place))
    finally:
        os.close(lock)


def _is_unused(place: Path) -> bool:
    """Whether nobody will miss it, once its lock is ours."""
    try:
        return (place / _FACTS).stat().st_mtime < time.time() - KEPT_DAYS * 86_400
    except (FileNotFoundError, NotADirectoryError):
        return place.is_dir()


def _open_up(tree: Path) -> None:
    """Let everybody read what its owner may: each devbox has a user of its own, and none of them is the maker's."""
    tree.chmod(0o755)
    for folder, folders, files in os.walk(tree):
        for path in (Path(folder, name) for name in (*folders, *files)):
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode):
                own = mode & 0o700 | (0o500 if stat.S_ISDIR(mode) else 0o400)
                path.chmod(own | (own & 0o500) >> 3 | (own & 0o500) >> 6)
