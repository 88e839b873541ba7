"""The journal and what is derived from it, in step: results.jsonl, and a checkpoint now and then."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import structlog

from orchestrator.errors import JournalError
from orchestrator.events import Event
from orchestrator.journal import checkpoint
from orchestrator.journal.checkpoint import Folded
from orchestrator.journal.files import JOURNAL, RESULTS, sync_folder
from orchestrator.journal.reading import fold_events
from orchestrator.journal.results import Results
from orchestrator.journal.tail import Tail
from orchestrator.ledger import Ledger


class Store:
    """The files of one folder, for one thread at a time; whoever has it has the folder's lock."""

    def __init__(self, folder: Path, *, journal: Tail, lines: int, results: Results, folded: int) -> None:
        self.folder = folder
        self._journal = journal
        self._lines = lines
        self._results = results
        #: How much of the journal the checkpoint has.
        self._folded = folded

    @classmethod
    def recover(cls, folder: Path, ledger: Ledger) -> Self:
        """Fold what is there into an empty ledger, cut a torn tail off, and make results.jsonl what the journal says.

        Raises JournalError naming the place of damage, UsageError for a later version's journal, OSError.
        """
        path = folder / JOURNAL
        path.touch()
        kept = checkpoint.load(folder, ledger) or Folded()
        folded, rows = kept.journal.size, len(kept.offsets)
        end, lines, results = folded, kept.lines, Results(folder, kept.offsets)
        for event, offset in fold_events(path, ledger, end, lines):
            results.note(event, end)
            end, lines = offset, lines + 1
        if not lines:
            _check_new(folder)
        if path.stat().st_size > end:
            os.truncate(path, end)
        are_first = sum(offset < folded for offset in results.offsets.values()) == rows  # none was reopened since
        results.restore(kept.results if are_first else None, rows)
        sync_folder(folder)
        journal = Tail(path, kept.journal.read(path, end))
        return cls(folder, journal=journal, lines=lines, results=results, folded=folded)

    def add(self, events: Sequence[Event], lines: Sequence[bytes]) -> None:
        """Make events durable. Raises OSError; none of them is there then, and it may be tried again."""
        offset = self._journal.sum.size
        self._journal.append(b"".join(lines), sync=True)
        for event, line in zip(events, lines, strict=True):
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

    @property
    def growth(self) -> int:
        """How much of the journal no checkpoint has."""
        return self.size - self._folded

    def checkpoint(self, ledger: Ledger) -> None:
        """Keep what all of it adds up to: the ledger must say just that, and not change meanwhile."""
        self._folded = self.size
        folded = Folded(
            journal=self._journal.sum, lines=self._lines, offsets=self._results.offsets, results=self._results.proof()
        )
        try:
            checkpoint.save(self.folder, ledger, folded)
        except Exception as error:  # noqa: BLE001 - it is disposable, and nobody waits for it
            structlog.get_logger().debug("checkpoint.failed", folder=str(self.folder), reason=repr(error))

    def close(self) -> None:
        """Let go of the files."""
        self._journal.close()
        self._results.close()


def _check_new(folder: Path) -> None:
    """Raise JournalError where a journal without a line had some: what it said is gone, but for the results."""
    results = folder / RESULTS
    if results.is_file() and results.stat().st_size:
        raise JournalError(
            f"{folder / JOURNAL} has no whole line, and {results} has results of this sweep. Nothing was changed: "
            "put the journal back, or start another sweep with --name and keep these results."
        )
