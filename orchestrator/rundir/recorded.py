"""A sweep as its folder records it: what the sweep is, its fold, and its results.

Everything is read without the folder's lock, so that it can be looked at while a process works in it, after it, and on
a machine that the folder was copied to.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Final

from orchestrator.core.errors import JournalError, SweepError
from orchestrator.core.events import Event
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.protocol import Described
from orchestrator.core.records import TrialKey
from orchestrator.rundir.files import MANIFEST, RESULTS, attempt_folder
from orchestrator.rundir.journal import Reader
from orchestrator.rundir.manifest import Manifest, read_manifest
from orchestrator.rundir.results_file import Row, read_results, unknown_results
from orchestrator.rundir.sweep_index import Holder, holder

#: The beginning of the reason in `sweep.ended` when every trial has a result.
_FINISHED: Final = "finished"


class SweepState(Described):
    """Where a sweep is, as far as its folder shows."""

    RUNNING = "running", "a process works on it"
    FINISHED = "finished", "every trial has a result"
    STOPPED = "stopped", "it ended before every trial had a result; `sweep resume` goes on with it"
    DIED = "died", "its process ended without a word; `sweep resume` goes on with it"


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Inside, what a reader makes of values that no sweep has becomes a JournalError that names the folder."""
    try:
        yield
    except SweepError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise JournalError(f"{folder} is damaged, or no sweep of ours: {type(error).__name__}: {error}.") from error


class RecordedSweep:
    """A sweep that is read from its folder. Every call blocks, as long as reading takes.

    Raises UsageError if the folder is no sweep, JournalError if it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        #: Whether a process worked on it when the journal was last read: what it wrote then may not be read yet.
        self._was_held = self.holder is not None
        self._reader = Reader(folder)
        self._seen = self._versions()

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def ledger(self) -> Ledger:
        return self._reader.ledger

    @cached_property
    def plan(self) -> Plan:
        """The trials that it was last asked for."""
        return self.manifest.plan

    @property
    def holder(self) -> Holder | None:
        """The process that works on it; None if there is none."""
        return holder(self.folder)

    @property
    def state(self) -> SweepState:
        if self.holder is not None or (self._was_held and self.ledger.ended is None):
            return SweepState.RUNNING
        if self.ledger.ended is None:
            return SweepState.DIED
        return SweepState.FINISHED if self.ledger.ended.startswith(_FINISHED) else SweepState.STOPPED

    @cached_property
    def results(self) -> Mapping[TrialKey, Row]:
        """The lines of results.jsonl, in the order in which the trials finished."""
        return {TrialKey(row["scenario"], row["arm"], row["trial"]): row for row in read_results(self.folder)}

    @property
    def lost(self) -> int:
        """The number of results in results.jsonl that the journal has lost. A file is never ahead of its journal."""
        if self.holder is not None or self._was_held:
            return 0
        return sum(1 for _ in unknown_results(self.folder, self.ledger))

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The names of scenarios by their ids."""
        return {scenario.id: scenario.name for scenario in self.manifest.scenarios.values()}

    def attempt_folder(self, key: TrialKey, number: int) -> Path:
        """The folder of one attempt at a trial, which may not be there."""
        return attempt_folder(self.folder, key, self.names[key.scenario], number)

    def catch_up(self, see: Callable[[Event], object] = lambda _: None) -> bool:
        """Take in what was written since the last time; tell if there was anything.

        `see` is called with each event, once the ledger has it.
        """
        self._was_held = self.holder is not None
        events = self._reader.read()
        for event in events:
            self.ledger.apply(event)
            see(event)
        before, self._seen = self._seen, self._versions()
        if before[RESULTS] != self._seen[RESULTS]:
            vars(self).pop("results", None)
        if before[MANIFEST] != self._seen[MANIFEST]:
            self.manifest = read_manifest(self.folder)
            vars(self).pop("plan", None)
            vars(self).pop("names", None)
        return bool(events) or before != self._seen

    def _versions(self) -> Mapping[str, tuple[int, int, int] | None]:
        """The version of each file that is read whole."""

        def version(path: Path) -> tuple[int, int, int] | None:
            try:
                found = path.stat()
            except FileNotFoundError:
                return None
            return found.st_ino, found.st_size, found.st_mtime_ns

        return {name: version(self.folder / name) for name in (MANIFEST, RESULTS)}
