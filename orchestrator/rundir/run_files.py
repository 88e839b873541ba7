"""The journal and what is derived from it, in step: results.jsonl, and a checkpoint now and then."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import structlog

from orchestrator.core.errors import JournalError
from orchestrator.core.events import Event
from orchestrator.core.ledger import Ledger
from orchestrator.rundir import checkpoint
from orchestrator.rundir.append_file import Tail
from orchestrator.rundir.checkpoint import Folded
from orchestrator.rundir.files import JOURNAL, RESULTS, sync_folder
from orchestrator.rundir.reading import fold_events
from orchestrator.rundir.results import Results, unknown_results


class Store:
    """The files of one folder, for one thread at a time; whoever has it has the folder's lock."""

    def __init__(
        self, folder: Path, *, ledger: Ledger, journal: Tail, lines: int, results: Results, folded: int
    ) -> None:
        self.folder = folder
        #: What the journal says on the disk.
        self._ledger = ledger
        self._journal = journal
        self._lines = lines
        self._results = results
        #: How much of the journal the checkpoint has.
        self._folded = folded

    @classmethod
    def recover(cls, folder: Path, ledger: Ledger) -> Self:
        """Fold what is there into an empty ledger, cut a torn tail off, and make results.jsonl what the journal says.

        Raises JournalError naming the place of damage, and for a journal that lost lines whose results are there,
        UsageError for a later version's journal, OSError.
        """
        path = folder / JOURNAL
        path.touch()
        kept = checkpoint.load(folder, ledger) or Folded()
        folded, rows = kept.journal.size, len(kept.offsets)
        end, lines, results = folded, kept.lines, Results(folder, kept.offsets)
        for event, offset in fold_events(path, ledger, end, lines):
            results.note(event, end)
            end, lines = offset, lines + 1
        _check_whole(folder, ledger, lines)
        if path.stat().st_size > end:
            os.truncate(path, end)
        are_first = sum(offset < folded for offset in results.offsets.values()) == rows  # none was reopened since
        results.restore(kept.results if are_first else None, rows)
        sync_folder(folder)
        journal = Tail(path, kept.journal.read(path, end))
        return cls(folder, ledger=ledger.copy(), journal=journal, lines=lines, results=results, folded=folded)

    def add(self, events: Sequence[Event], lines: Sequence[bytes]) -> None:
        """Make events durable. Raises OSError; none of them is there then, and it may be tried again."""
        offset = self._journal.sum.size
        self._journal.append(b"".join(lines), sync=True)
        for event, line in zip(events, lines, strict=True):
            self._ledger.apply(event)
            self._results.note(event, offset)
            offset += len(line)
        self._lines += len(lines)

    def flush(self) -> None:
        """Bring results.jsonl up to date. Raises OSError; it may be tried again."""
        self._results.flush()

    @property
    def size(self) -> int:
        """Of the journal, in bytes."""
        return self._journal.sum.size

    def checkpoint(self, *, at_least: int) -> None:
        """Keep what all of it adds up to, if it grew by more than so many bytes since that was done."""
        if self.size - self._folded <= at_least:
            return
        self._folded = self.size
        folded = Folded(
            journal=self._journal.sum, lines=self._lines, offsets=self._results.offsets, results=self._results.proof()
        )
        try:
            checkpoint.save(self.folder, self._ledger, folded)
        except Exception as error:  # noqa: BLE001 - it is disposable, and nobody waits for it
            structlog.get_logger().debug("checkpoint.failed", folder=str(self.folder), reason=repr(error))

    def close(self) -> None:
        """Let go of the files."""
        self._journal.close()
        self._results.close()


def _check_whole(folder: Path, ledger: Ledger, lines: int) -> None:
    """Raise JournalError for a journal that lost what results.jsonl has: made anew from it, that would lose it too."""
    results = folder / RESULTS
    lost = sum(1 for _ in unknown_results(folder, ledger))
    if lost or (not lines and results.is_file() and results.stat().st_size):
        what = f"has lost {lost} finished trials that {results} has" if lost else f"has no whole line, {results} has"
        raise JournalError(
            f"{folder / JOURNAL} {what}. Nothing was changed: put the journal back from a copy, or have "
            f"`sweep repair {folder}` take these results into it and set the rest aside; then resume the sweep."
        )
