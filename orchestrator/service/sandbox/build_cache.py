"""Results of slow builds, kept in folders: environments of scenarios, installs of agents, Pythons of scorers.

The name of an entry is a digest of all that decides its content, so an entry is never out of date. It is a folder with
a tree and a description. The description is written last: without it nothing is an entry, whatever a killed process
left there. It says how much the tree holds, and that is compared at the first use in a process: what a crash of the
machine or a careless hand left torn is built again.

One task builds an entry while the others that want it wait. If its task is cancelled, the next one takes over. If the
build fails, all that waited get the same error, instead of failing one after the other.

A build cache that every service of one user on this machine shares has locks between processes too. A process locks
the entry that it builds for itself alone (flock(2)), and each entry that it has used together with others, until it
releases it or ends, so that nothing is removed under a devbox. The time of an entry's description is that of the last
use. Folder names and locks are the same in all versions, which may run side by side.
"""

import fcntl
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from threading import Lock
from typing import Any, Final, Generic, TypeVar

import anyio
import msgspec
import orjson
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.sandbox.safe_fs import amount, remove

T = TypeVar("T")

#: Builds of one cache that run at the same time.
MAX_BUILDS: Final = 4
#: Days after which an entry of a user's cache that no process used is removed, unless it is said otherwise.
KEPT_DAYS: Final = 30
_DAY_S: Final = 86_400
_LOCK: Final = "lock"
_MAKING: Final = "making"
#: Pause between two looks whether another process has finished an entry.
_POLL_S: Final = 0.25
#: An entry that is not there right after it was built is built again, so many times in all.
_TRIES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A tree, and facts about it as JSON for its description."""

    tree: Path
    facts: Mapping[str, Any]


#: Builds a tree below the empty folder that it is given.
Build = Callable[[Path], Awaitable[Built]]


@dataclass(slots=True)
class _Flight:
    """The tasks that want one entry at the same time."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    users: int = 0
    failure: Exception | None = None


class BuildCache(Generic[T]):
    """The entries below `folder`, for the tasks of one process.

    An entry is `folder/NAME/TREE` with its description `folder/NAME/KIND.json`. `read` makes the result of it, and may
    raise ValueError, KeyError or TypeError for an entry that is to be built again. `measure` says how much a tree
    holds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kind: str,
        tree: str,
        read: Callable[[Built], T],
        measure: Callable[[Path], list[int]] = amount,
    ) -> None:
        self._folder = folder
        self._kind = kind
        self._tree = tree
        self._read = read
        self._measure = measure
        self._seats = anyio.Semaphore(MAX_BUILDS)
        self._flights: dict[str, _Flight] = {}
        self._whole: set[str] = set()
        self._guard = Lock()
        self._reserved: set[str] = set()

    async def get(self, name: str, build: Build) -> T:
        """Return the entry, built now if it is not there.

        Raises what `build` raises, and OSError; all tasks that waited get the same error.
        """
        if (found := await run_sync(self.find, name)) is not None:
            return found
        flight = self._flights.setdefault(name, _Flight())
        flight.users += 1
        seen = flight.failure
        try:
            async with flight.lock:
                if flight.failure is not None and flight.failure is not seen:
                    raise flight.failure
                try:
                    return await self._find_or_build(name, build)
                except Exception as error:
                    flight.failure = error
                    raise
        finally:
            flight.users -= 1
            if not flight.users:
                del self._flights[name]

    async def _find_or_build(self, name: str, build: Build) -> T:
        builds = 0
        async with self._seats:
            while (found := await run_sync(self.find, name)) is None:
                reserved = await run_sync(self.reserve, name)
                if reserved is None:
                    await anyio.sleep(_POLL_S)
                    continue
                with reserved:
                    if builds == _TRIES:
                        raise OSError("it vanished as soon as it was built")
                    builds += 1
                    try:
                        await run_sync(self.prune)
                        built = await build(await run_sync(self.open, name))
                        await run_sync(self._keep, name, built)
                    finally:
                        with anyio.CancelScope(shield=True):
                            await run_sync(self._close, name)
        return found

    def find(self, name: str) -> T | None:
        """Return the entry if it is there and whole. Blocking."""
        tree = self.tree(name)
        error: str | None = "it does not hold what it should"
        try:
            facts = msgspec.json.decode(self._description(name).read_bytes(), type=dict[str, Any])
            if tree.is_dir() and (name in self._whole or facts.get("amount") == self._measure(tree)):
                found = self._read(Built(tree=tree, facts=facts))
                self._whole.add(name)
                return found
        except FileNotFoundError:
            error = None
        except (OSError, ValueError, KeyError, TypeError) as damage:
            error = str(damage)
        self._whole.discard(name)
        if error is not None:
            structlog.get_logger().warning(f"{self._kind}.torn", folder=str(tree.parent), error=error)
        return None

    def reserve(self, name: str) -> ExitStack | None:
        """Claim the folder of an entry until the context is left; None if it is claimed. Blocking. Raises OSError."""
        with self._guard:
            if name in self._reserved:
                return None
            (self._folder / name).mkdir(parents=True, exist_ok=True)
            self._reserved.add(name)
        reserved = ExitStack()
        reserved.callback(self._reserved.discard, name)
        return reserved

    def open(self, name: str) -> Path:
        """Return an empty folder to build a reserved entry in; removes what is left of it. Blocking. Raises OSError."""
        self._description(name).unlink(missing_ok=True)
        _empty(self._folder / name)
        making = self._folder / name / _MAKING
        making.mkdir(mode=0o700)
        return making

    def _keep(self, name: str, built: Built) -> None:
        """Make a tree, which was built in the folder that was opened, the entry."""
        place = self._folder / name
        built.tree.rename(self.tree(name))
        facts = {**built.facts, "amount": self._measure(self.tree(name))}
        draft = place / _MAKING / self._description(name).name
        with draft.open("wb") as file:
            file.write(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._description(name))

    def _close(self, name: str) -> None:
        """Remove the folder that was opened, and that of the entry if nothing is in it."""
        place = self._folder / name
        try:
            remove(place / _MAKING)
        except OSError as error:
            structlog.get_logger().warning(f"{self._kind}.not_removed", folder=str(place), error=str(error))
        with suppress(OSError):
            place.rmdir()

    def prune(self) -> None:
        """Remove folders that no process needs: what is no entry, and entries out of use. Blocking."""
        for place in self._folder.iterdir() if self._folder.is_dir() else ():
            try:
                if not self.is_unused(place) or (reserved := self.reserve(place.name)) is None:
                    continue
                with reserved:
                    if self.is_unused(place):
                        self._remove(place)
            except OSError as error:
                structlog.get_logger().warning(f"{self._kind}.not_removed", folder=str(place), error=str(error))

    def discard(self, name: str) -> bool:
        """Remove an entry, or what is left of one; False if somebody builds or uses it. Blocking. Raises OSError."""
        if (reserved := self.reserve(name)) is None:
            return False
        with reserved:
            self._whole.discard(name)
            self._remove(self._folder / name)
        return True

    def is_used(self, name: str) -> bool:
        """Tell whether somebody builds or uses an entry that is there. Blocking. Raises OSError."""
        if self.facts(name) is None:
            return False
        if (reserved := self.reserve(name)) is None:
            return True
        reserved.close()
        return False

    def facts(self, name: str) -> Mapping[str, Any] | None:
        """Return the description of an entry, without using it; None if there is none. Blocking. Raises OSError."""
        try:
            return msgspec.json.decode(self._description(name).read_bytes(), type=dict[str, Any])
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def tree(self, name: str) -> Path:
        """Return the folder of an entry's tree, which may be there or not."""
        return self._folder / name / self._tree

    def used_at(self, name: str) -> float:
        """Return when an entry was used last, in seconds since 1970; 0 if it is not there. Blocking. Raises OSError."""
        try:
            return self._description(name).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def names(self) -> list[str]:
        """Return the names of all entries, and of what is left of others. Blocking. Raises OSError."""
        return [place.name for place in self._folder.iterdir()] if self._folder.is_dir() else []

    def _remove(self, place: Path) -> None:
        """Remove the folder of a reserved entry. Raises OSError."""
        self._description(place.name).unlink(missing_ok=True)
        # A process that wants to build here meanwhile makes a folder of its own.
        gone = place.rename(place.with_name(f"{place.name}-{token_hex(4)}"))
        _empty(gone)
        (gone / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # a process has found it meanwhile, and removes it as well
            gone.rmdir()
        structlog.get_logger().info(f"{self._kind}.pruned", folder=str(place))

    def is_unused(self, place: Path) -> bool:
        """Tell whether a folder may go unless it is reserved. Blocking. Raises OSError."""
        return place.is_dir() and not self._description(place.name).exists()

    def _description(self, name: str) -> Path:
        return self._folder / name / f"{self._kind}.json"


def _empty(place: Path) -> None:
    """Remove all in the folder of an entry but its lock. Raises OSError."""
    for left in place.iterdir():
        if left.is_dir() and not left.is_symlink():
            remove(left)
        elif left.name != _LOCK:
            left.unlink()


class UserCache(BuildCache[T]):
    """The entries below `cache/folder`, for all processes of a user; those unused for `kept_days` go.

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
        kept_days: float = KEPT_DAYS,
    ) -> None:
        super().__init__(cache / folder, kind=kind, tree=tree, read=read, measure=measure)
        self._cache = cache
        self._kept_days = kept_days
        self._held: dict[str, int] = {}

    def find(self, name: str) -> T | None:
        """Return the entry if it is there and whole; until it is released no process removes it. Blocking."""
        with self._guard:
            lock = self._held.get(name)
            if lock is None and self._description(name).exists():
                check_private(self._cache, self._folder)
                lock = lock_folder(self._folder / name, fcntl.LOCK_SH)
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

    def release(self, names: Iterable[str]) -> None:
        """Let go of entries, which may be removed from now on. Blocking, shortly."""
        with self._guard:
            for name in names:
                self._whole.discard(name)
                if (lock := self._held.pop(name, None)) is not None:
                    os.close(lock)

    def close(self) -> None:
        """Let go of all entries. Blocking, shortly."""
        self.release(tuple(self._held))

    def reserve(self, name: str) -> ExitStack | None:
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        check_private(self._cache, self._folder)
        lock = lock_folder(self._folder / name, fcntl.LOCK_EX)
        if lock is None:
            return None
        reserved = ExitStack()
        reserved.callback(os.close, lock)
        return reserved

    def is_unused(self, place: Path) -> bool:
        try:
            return self._description(place.name).stat().st_mtime < time.time() - self._kept_days * _DAY_S
        except (FileNotFoundError, NotADirectoryError):
            return place.is_dir()


def check_private(*folders: Path) -> None:
    """Raises OSError for a folder that others could put programs in."""
    for folder in folders:
        found = folder.stat()
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise PermissionError(
                f"{folder} belongs to somebody else or can be written by others: `chmod 700` it if it is yours, "
                "or set SWEEP_CACHE to another folder"
            )


def lock_folder(place: Path, kind: int) -> int | None:
    """Return the lock of a folder, made if it is not there, as an open file; None if another process holds it.

    Raises OSError.
    """
    while True:
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except (FileNotFoundError, FileExistsError):  # the place was removed meanwhile
            if place.parent.is_dir() and (place.is_dir() or not os.path.lexists(place)):
                continue
            raise
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
        os.close(lock)  # the file was removed before it was locked
