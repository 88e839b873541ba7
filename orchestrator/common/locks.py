"""One process at a time in a folder, visible from outside: by a lock of the system, or without locks by a note.

A lock (flock(2)) ends with its process, however that ends. Some file systems have no locks and say so; on others every
process gets every lock. Both are detected before anything is done. `--lock none` uses a note file instead. At most one
process can create it (O_EXCL). It counts until its process is known to have ended, which only the same machine and
container can know. A process that uses locks respects the note too.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import LockKind

LOCK: Final = "lock"
#: The note of a process that works without a lock.
NOTE: Final = "holder.json"
#: Printed at the start where no lock is used; `{}` is the folder.
RISK: Final = (
    "As --lock none says, no lock is held: a note alone keeps a second process out, and is not proof against one that "
    "starts at the same moment on another machine. Let no other process work in {}."
)
#: `holder` holds a folder's lock for an instant, so a refused lock is tried again.
_TRIES: Final = 20
_PAUSE_S: Final = 0.005
_FIX: Final = (
    "Keep it on a file system with locks, such as a local disk, or give --lock none if you are sure that no other "
    "process works in it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A process that works without a lock. `space` is the process namespace of its `pid`; `birth` as the function."""

    pid: int
    host: str
    birth: str
    space: str

    @classmethod
    def ours(cls) -> Self:
        return cls(pid=os.getpid(), host=os.uname().nodename, birth=birth(os.getpid()), space=_space())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a note. A torn one counts as that of a live process. Raises OSError."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            return cls(pid=0, host="an unknown machine", birth="", space="")

    @property
    def is_here(self) -> bool:
        """True if a live process would be visible to us."""
        return self.host == os.uname().nodename and self.space == _space()

    @property
    def is_over(self) -> bool:
        """True if the process is known to have ended."""
        return self.is_here and bool(self.birth) and birth(self.pid) != self.birth

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Held(Exception):
    """Another process works in the folder; the message names it."""


@contextmanager
def hold(folder: Path, kind: LockKind = "file", *, words: str = "") -> Iterator[None]:
    """Be the only process that works in a folder. The lock file says `words`, or names our process.

    Raises Held if another process does, UsageError if `kind` asks for a lock and there are none, and OSError.
    """
    mine = os.open(folder / LOCK, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(mine, "a+b", buffering=0) as file:
        note = noted(folder)
        if note is not None and not note.is_over:
            is_visible = note.is_here and note.birth
            fix = "" if is_visible else f"; if it has ended, which cannot be seen here, remove {folder / NOTE}"
            raise Held(f"{note}, without a lock{fix}")
        _lock(file.fileno(), folder, kind)
        with suppress(OSError):  # a full disk has no room for the name, and the lock holds without it
            file.truncate(0)
            file.write((words or str(Note.ours())).encode())
        if kind == "file":
            yield
            return
        _write_note(folder)
        try:
            yield
        finally:
            (folder / NOTE).unlink(missing_ok=True)


def holder(folder: Path) -> tuple[str, Note | None] | None:
    """Return the process that works in a folder, in words, and its note if it uses no lock; None if there is none.

    Raises OSError if the folder cannot be read.
    """
    note = noted(folder)
    if note is not None and not note.is_over:
        return str(note), note
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _name_in(file), None
    except OSError:  # without locks no process holds one
        return None
    finally:
        os.close(file)
    return None


def noted(folder: Path) -> Note | None:
    """Return the note in a folder, also of a process that has ended."""
    with suppress(FileNotFoundError):
        return Note.read(folder / NOTE)
    return None


def birth(pid: int) -> str:
    """Return the boot id and start time (clock ticks) of a process; "" if there is no such process any more.

    They distinguish it from a later process with the same number.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot} {fields[19]}"


def _lock(file: int, folder: Path, kind: LockKind) -> None:
    """Lock an open file. Raises Held.

    Raises UsageError if `kind` asks for locks and the file system has none, or grants every lock.
    """
    for _ in range(_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError as error:
            if kind == "file":
                raise UsageError(f"{folder} is on a file system that has no locks ({error.strerror}). {_FIX}") from None
            return
        else:
            break
    else:
        raise Held(_name_in(file))
    if kind == "none":
        return
    second = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    except OSError:
        pass
    finally:
        os.close(second)
    raise UsageError(f"{folder} is on a file system whose locks keep nobody out: a second one was granted. {_FIX}")


def _write_note(folder: Path) -> None:
    """Write the note of our process. Raises Held if another process was faster."""
    data = json.dumps(asdict(Note.ours())).encode()
    _remove_stale_note(folder)
    try:
        note = os.open(folder / NOTE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Held(f"{noted(folder) or 'another process'}, without a lock") from None
    try:
        with os.fdopen(note, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a full disk: a torn note would count as that of a live process
        (folder / NOTE).unlink(missing_ok=True)
        raise


def _remove_stale_note(folder: Path) -> None:
    """Remove the note of a process that has ended.

    It is renamed first: by now it may be the note of another, faster process, and is put back then.
    """
    aside = folder / f"{NOTE}.{os.getpid()}"
    with suppress(FileNotFoundError):
        (folder / NOTE).rename(aside)
        try:
            if not Note.read(aside).is_over:
                os.link(aside, folder / NOTE)
        finally:
            aside.unlink()


def _name_in(file: int) -> str:
    return os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"


def _space() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path
    return ""
