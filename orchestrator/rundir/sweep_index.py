"""The sweeps of a runs folder: their order, the process that runs one, and the reader of its journal. Reads only."""

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from orchestrator.common import locks
from orchestrator.core.errors import SweepError, UsageError
from orchestrator.core.events import Event, SweepEnded, TrialFinished, TrialReopened
from orchestrator.core.ledger import Ledger
from orchestrator.rundir.checkpoint import Folded, load
from orchestrator.rundir.files import JOURNAL, MANIFEST
from orchestrator.rundir.manifest import Manifest, read_manifest
from orchestrator.rundir.run_files import fold_events, read_events

#: The default runs folder.
RUNS: Final = "runs"
_HOLDER: Final = re.compile(r"process (\d+) on (.*)")
#: The beginnings of the journal lines that tell how many trials are done.
_FINISHED, _REOPENED, _ENDED = (
    f'{{"event":"{cls.__struct_config__.tag}"'.encode() for cls in (TrialFinished, TrialReopened, SweepEnded)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that runs a sweep. `pid` is None unless it is certainly a process of this machine."""

    name: str
    pid: int | None


def holder(folder: Path) -> Holder | None:
    """The process that holds the folder's lock; None if there is none."""
    found = locks.holder(folder)
    if found is None:
        return None
    name, note = found
    if note is not None:
        return Holder(name=name, pid=note.pid if note.is_here else None)
    match = _HOLDER.fullmatch(name)
    is_here = match is not None and match[2] == os.uname().nodename and _has_open(match[1], folder / locks.LOCK)
    return Holder(name=name, pid=int(match[1]) if match and is_here else None)


def _has_open(pid: str, file: Path) -> bool:
    """True if a process has this file open: its number alone may be that of another process now."""
    try:
        wanted = file.stat()
        for each in Path("/proc", pid, "fd").iterdir():
            with suppress(FileNotFoundError):
                if os.path.samestat(each.stat(), wanted):
                    return True
    except OSError:
        return False
    return False


def sweeps(runs: Path) -> Iterator[tuple[Path, Manifest]]:
    """The run folders with their manifests, newest first; those that cannot be read are left out."""
    folders = [path.parent for path in runs.glob(f"*/{MANIFEST}")]
    for folder in sorted(folders, key=lambda path: (path / MANIFEST).stat().st_mtime_ns, reverse=True):
        with suppress(SweepError, OSError):
            yield folder, read_manifest(folder)


def is_finished(folder: Path, manifest: Manifest) -> bool:
    """True if every trial that was last asked for has a result, and its process had nothing left to do."""
    finished, last = 0, b""
    with suppress(FileNotFoundError), (folder / JOURNAL).open("rb") as journal:
        for line in journal:
            finished += line.startswith(_FINISHED) - line.startswith(_REOPENED)
            last = line
    return finished >= manifest.trials and last.startswith(_ENDED) and last.endswith(b"\n")


def find(runs: Path, name: str) -> Path:
    """Find the run folder with this name below `runs`, or at this path. Raises UsageError with close names."""
    for folder in (runs / name, Path(name).expanduser()):
        if (folder / MANIFEST).is_file():
            return folder if folder.name not in {"", ".."} else folder.resolve()
    known = [folder.name for folder, _ in sweeps(runs)]
    near = get_close_matches(name, known, 3)
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(known[:10]) or 'none'}."
    raise UsageError(f"There is no sweep {name!r} in {runs}. {hint}")


def as_typed(folder: Path) -> str:
    """The argument for a command that finds this folder: its name if that is enough, else its path."""
    runs = Path(os.environ.get("SWEEP_RUNS") or RUNS)
    return shlex.quote(folder.name if folder.resolve().parent == runs.resolve() else str(folder))


def find_unfinished(runs: Path) -> Path:
    """Find the newest unfinished sweep. Raises UsageError if there is none."""
    found = next((folder for folder, manifest in sweeps(runs) if not is_finished(folder, manifest)), None)
    if found is None:
        raise UsageError(f"There is no unfinished sweep in {runs}: name one, or say with --runs where it is.")
    return found


def find_running(runs: Path) -> Path:
    """Find the sweep that is running. Raises UsageError if there is none, or more than one."""
    found = [folder for folder, _ in sweeps(runs) if holder(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"Several sweeps are running; name one: {', '.join(folder.name for folder in found)}.")
    raise UsageError(f"No sweep of {runs} is running: name one, or say with --runs where it is.")


class Reader:
    """Reads a journal without its lock, while another process may write it; a torn line is left for the next time."""

    def __init__(self, folder: Path) -> None:
        """Fold the journal, from its checkpoint on if it has one. Raises JournalError for damage. Blocking."""
        self.ledger = Ledger()
        kept = load(folder, self.ledger) or Folded()
        self._path = folder / JOURNAL
        self._offset, self._lines = kept.journal.size, kept.lines
        with suppress(FileNotFoundError):
            for _, end in fold_events(self._path, self.ledger, self._offset, self._lines):
                self._offset, self._lines = end, self._lines + 1

    def read(self) -> list[Event]:
        """The events since the last time, which are not in the ledger. Raises JournalError for damage. Blocking."""
        found = []
        with suppress(FileNotFoundError):
            for event, end in read_events(self._path, self._offset, self._lines):
                found.append(event)
                self._offset, self._lines = end, self._lines + 1
        return found
