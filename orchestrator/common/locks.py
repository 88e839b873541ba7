"""One process at a time in a folder, which is seen from outside: by a lock, or where there are none by a note.

A lock of the system's (flock(2)) is gone when its process is, however that ended. Some file systems have none and say
so; on others everybody gets every lock. Both are found out before anything is done. `--lock none` does without: then a
file says who is at work. It is made by at most one (O_EXCL), and counts until its process is known to have ended, which
can be known only on the machine and in the container that it runs in. Who uses locks looks for the note too.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, Self

from orchestrator.core.errors import UsageError

LOCK: Final = "lock"
#: Who is at work without a lock.
NOTE: Final = "holder.json"
Kind = Literal["file", "none"]
#: What whoever does without locks is told at the start.
RISK: Final = (
    "As --lock none says, no lock is held: a note alone keeps a second process out, and is not proof against one that "
    "starts at the same moment on another machine. Let nobody else work in {}."
)
#: Who looks whether a folder is in use holds its lock for an instant: so often is it tried, so many seconds apart.
_TRIES: Final = 20
_INSTANT: Final = 0.005
_WAY: Final = (
    "Keep it on a file system with locks, such as a local disk, or give --lock none if you are sure that nobody else "
    "works in it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A process that is at work without a lock. `space` is the process namespace that its number is of."""

    pid: int
    host: str
    birth: str
    space: str

    @classmethod
    def ours(cls) -> Self:
        return cls(pid=os.getpid(), host=os.uname().nodename, birth=birth(os.getpid()), space=_space())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises OSError. One that is torn is not known to be over."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            return cls(pid=0, host="an unknown machine", birth="", space="")

    @property
    def is_here(self) -> bool:
        """Whether it is a process that we can see, if it lives."""
        return self.host == os.uname().nodename and self.space == _space()

    @property
    def is_over(self) -> bool:
        """Whether it is known to have ended."""
        return self.is_here and bool(self.birth) and birth(self.pid) != self.birth

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Held(Exception):
    """Somebody else is at work in the folder; says who."""


@contextmanager
def hold(folder: Path, kind: Kind = "file", *, words: str = "") -> Iterator[None]:
    """Be the one who is at work in a folder. `words` are what the lock says of us; the default names our process.

    Raises Held if somebody else is, UsageError where locks are asked for and there are none, and OSError.
    """
    mine = os.open(folder / LOCK, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(mine, "a+b", buffering=0) as file:
        _check_note(folder)
        refusal = _take(file.fileno())
        if kind == "file":
            _check_lock(folder, refusal)
        with suppress(OSError):  # a full disk has no room for the name, and the lock holds without it
            file.truncate(0)
            file.write((words or str(Note.ours())).encode())
        if kind == "file":
            yield
            return
        _leave_note(folder)
        try:
            yield
        finally:
            (folder / NOTE).unlink(missing_ok=True)


def holder(folder: Path) -> tuple[str, Note | None] | None:
    """Who is at work in a folder, in words, and its note if it holds no lock; None if nobody is.

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
        return _says(file), None
    except OSError:  # no locks here: nobody holds one
        return None
    finally:
        os.close(file)
    return None


def noted(folder: Path) -> Note | None:
    """Who noted to be at work without a lock, whether that has ended or not."""
    with suppress(FileNotFoundError):
        return Note.read(folder / NOTE)
    return None


def birth(pid: int) -> str:
    """What tells a process from a later one with its number: the boot, and the clock ticks from it to its start.

    Empty if there is no such process any more.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot} {fields[19]}"


def _take(file: int) -> OSError | None:
    """Lock an open file; returns what the file system says if it has no locks. Raises Held."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_INSTANT)
        except OSError as error:
            return error
        else:
            return None
    raise Held(_says(file))


def _check_lock(folder: Path, refusal: OSError | None) -> None:
    """Raises UsageError where a lock was refused, or keeps nobody out."""
    if refusal is not None:
        raise UsageError(f"{folder} is on a file system that has no locks ({refusal.strerror}). {_WAY}")
    second = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    except OSError:
        pass
    finally:
        os.close(second)
    raise UsageError(f"{folder} is on a file system whose locks keep nobody out: a second one was granted. {_WAY}")


def _check_note(folder: Path) -> None:
    """Raises Held while somebody may be at work without a lock."""
    note = noted(folder)
    if note is not None and not note.is_over:
        is_visible = note.is_here and note.birth
        known = "" if is_visible else f"; if it has ended, which cannot be seen here, remove {folder / NOTE}"
        raise Held(f"{note}, without a lock{known}")


def _leave_note(folder: Path) -> None:
    """Note that we are at work. Raises Held if somebody was quicker."""
    data = json.dumps(asdict(Note.ours())).encode()
    _remove_note_of_one_that_has_ended(folder)
    try:
        note = os.open(folder / NOTE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Held(f"{noted(folder) or 'another process'}, without a lock") from None
    with os.fdopen(note, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove_note_of_one_that_has_ended(folder: Path) -> None:
    """Aside first: the note that was looked at may be another's by now, who was quicker, and goes back then."""
    aside = folder / f"{NOTE}.{os.getpid()}"
    with suppress(FileNotFoundError):
        (folder / NOTE).rename(aside)
        try:
            if not Note.read(aside).is_over:
                os.link(aside, folder / NOTE)
        finally:
            aside.unlink()


def _says(file: int) -> str:
    return os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"


def _space() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path
    return ""
