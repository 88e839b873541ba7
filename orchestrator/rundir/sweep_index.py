"""The sweeps of a runs folder: found by name or newest first, and who is at work in one. Reads only."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from orchestrator.common import locks
from orchestrator.core.errors import SweepError, UsageError
from orchestrator.core.events import Event, SweepEnded, TrialFinished, TrialReopened
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.records import ScenarioSummary
from orchestrator.rundir.checkpoint import Folded, load
from orchestrator.rundir.files import JOURNAL, MANIFEST, read_manifest
from orchestrator.rundir.reading import fold_events, read_events

#: Where sweeps are kept unless somebody says otherwise.
RUNS: Final = "runs"
_HOLDER: Final = re.compile(r"process (\d+) on (.*)")
#: How the lines of a journal begin that say how much of it is done.
_FINISHED, _REOPENED, _ENDED = (
    f'{{"event":"{cls.__struct_config__.tag}"'.encode() for cls in (TrialFinished, TrialReopened, SweepEnded)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who is at work in a run folder. `pid` is None unless it is surely a process of this machine."""

    name: str
    pid: int | None


def holder(folder: Path) -> Holder | None:
    """The process that is at work in the folder; None if nobody is."""
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
    """Whether a process has this file open: a number alone may be that of another one by now."""
    try:
        wanted = file.stat()
        for each in Path("/proc", pid, "fd").iterdir():
            with suppress(FileNotFoundError):
                if os.path.samestat(each.stat(), wanted):
                    return True
    except OSError:
        return False
    return False


def sweeps(runs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The run folders with their manifests, newest first; those that cannot be read are left out."""
    folders = [path.parent for path in runs.glob(f"*/{MANIFEST}")]
    for folder in sorted(folders, key=lambda path: (path / MANIFEST).stat().st_mtime_ns, reverse=True):
        with suppress(SweepError, OSError):
            yield folder, read_manifest(folder)


def is_finished(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether every trial that was last asked for has a result, and its process had nothing left to do."""
    finished, last = 0, b""
    with suppress(FileNotFoundError), (folder / JOURNAL).open("rb") as journal:
        for line in journal:
            finished += line.startswith(_FINISHED) - line.startswith(_REOPENED)
            last = line
    return finished >= manifest.get("trials", 0) and last.startswith(_ENDED) and last.endswith(b"\n")


def find(runs: Path, name: str) -> Path:
    """The run folder with this name below `runs`, or at this path. Raises UsageError that suggests near names."""
    for folder in (runs / name, Path(name).expanduser()):
        if (folder / MANIFEST).is_file():
            return folder if folder.name not in {"", ".."} else folder.resolve()
    known = [folder.name for folder, _ in sweeps(runs)]
    near = get_close_matches(name, known, 3)
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(known[:10]) or 'none'}."
    raise UsageError(f"There is no sweep {name!r} in {runs}. {hint}")


def as_typed(folder: Path) -> str:
    """What a command is to be told to find this folder: its name where that is enough, else its path."""
    runs = Path(os.environ.get("SWEEP_RUNS") or RUNS)
    return shlex.quote(folder.name if folder.resolve().parent == runs.resolve() else str(folder))


def find_unfinished(runs: Path) -> Path:
    """The newest unfinished sweep. Raises UsageError if there is none."""
    found = next((folder for folder, manifest in sweeps(runs) if not is_finished(folder, manifest)), None)
    if found is None:
        raise UsageError(f"There is no unfinished sweep in {runs}: name one, or say with --runs where it is.")
    return found


def find_running(runs: Path) -> Path:
    """The sweep that somebody is at work in. Raises UsageError if there is none, or more than one."""
    found = [folder for folder, _ in sweeps(runs) if holder(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"Several sweeps are running; name one: {', '.join(folder.name for folder in found)}.")
    raise UsageError(f"No sweep of {runs} is running: name one, or say with --runs where it is.")


def planned(manifest: Mapping[str, Any]) -> Plan:
    """The trials that the sweep was last asked for."""
    scenarios, config = manifest["scenarios"], manifest["config"]
    return Plan(
        benchmark=manifest["identity"]["benchmark"],
        scenarios=tuple(_summary(each, scenarios[each]) for each in manifest.get("selected", scenarios)),
        arms=tuple(arm["name"] for arm in config["arms"]),
        trials=config["trials"],
    )


def _summary(identity: str, entry: Mapping[str, Any]) -> ScenarioSummary:
    lists = {name: tuple(entry.get(name, ())) for name in ("network", "notes")}
    return ScenarioSummary(id=identity, **{**entry, **lists})


class Reader:
    """Reads a journal that another process may be writing, without the lock; a torn line is left for the next time."""

    def __init__(self, folder: Path) -> None:
        """Fold what is there, from its checkpoint on if it has one. Raises JournalError for damage. Blocking."""
        self.ledger = Ledger()
        kept = load(folder, self.ledger) or Folded()
        self._path = folder / JOURNAL
        self._offset, self._lines = kept.journal.size, kept.lines
        with suppress(FileNotFoundError):
            for _, end in fold_events(self._path, self.ledger, self._offset, self._lines):
                self._offset, self._lines = end, self._lines + 1

    def read(self) -> list[Event]:
        """The events since the last time, which the ledger has not yet. Raises JournalError for damage. Blocking."""
        found = []
        with suppress(FileNotFoundError):
            for event, end in read_events(self._path, self._offset, self._lines):
                found.append(event)
                self._offset, self._lines = end, self._lines + 1
        return found
