"""The journal and the files derived from it, in step: results.jsonl, and a checkpoint now and then."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import structlog

from orchestrator.core import events
from orchestrator.core.errors import JournalError, SweepError, UsageError
from orchestrator.core.events import Event, SweepOpened
from orchestrator.core.ledger import Ledger
from orchestrator.rundir import checkpoint
from orchestrator.rundir.append_file import AppendFile
from orchestrator.rundir.checkpoint import Folded
from orchestrator.rundir.files import JOURNAL, RESULTS, sync_folder
from orchestrator.rundir.results import Results, unknown_results

_FIX: Final = "Nothing was changed; `sweep repair` keeps what can be read."


def read_events(path: Path, offset: int = 0, lines: int = 0) -> Iterator[tuple[Event, int]]:
    """The events of a journal from an offset to the last whole line, each with the offset after its line.

    `lines` is the number of lines before the offset. Raises JournalError naming line and byte offset for a line that is
    not an event, UsageError for a later version's journal.
    """
    with path.open("rb", buffering=1 << 16) as file:
        file.seek(offset)
        for number, line in enumerate(file, lines + 1):
            if not line.endswith(b"\n"):
                return
            try:
                event = events.from_line(line)
            except JournalError as error:
                if not file.read(1) and not line.strip(b"\0\n"):
                    return  # some file systems leave a tail of zeros after a torn write
                raise JournalError(
                    f"{path}, line {number}, byte {offset}: this line is damaged ({error}). {_FIX}"
                ) from None
            check_version(event, path)
            offset += len(line)
            yield event, offset


def check_version(event: Event, path: Path) -> None:
    """Raise UsageError for the journal of a version whose events mean something else."""
    if type(event) is SweepOpened and event.schema > events.SCHEMA:
        raise UsageError(f"{path} was written by sweep {event.version}; this one is older. Upgrade it.")


def fold_events(path: Path, ledger: Ledger, offset: int = 0, lines: int = 0) -> Iterator[tuple[Event, int]]:
    """Read events, and apply each to a ledger. Raises as `read_events`, and JournalError for one that cannot follow."""
    for event, end in read_events(path, offset, lines):
        try:
            ledger.apply(event)
        except SweepError as error:
            raise JournalError(f"{path}, byte {offset}: {error} {_FIX}") from error
        offset = end
        yield event, end


class RunFiles:
    """The files of one folder, for one thread at a time, which holds the folder's lock."""

    def __init__(
        self, folder: Path, *, ledger: Ledger, journal: AppendFile, lines: int, results: Results, folded: int
    ) -> None:
        self.folder = folder
        #: The fold of the journal on the disk.
        self._ledger = ledger
        self._journal = journal
        self._lines = lines
        self._results = results
        #: Bytes of the journal that the checkpoint covers.
        self._folded = folded

    @classmethod
    def recover(cls, folder: Path, ledger: Ledger) -> Self:
        """Fold the journal into an empty ledger, cut off a torn tail, and make results.jsonl agree with it.

        Raises JournalError naming the place of damage, or if the journal lost lines that results.jsonl has results of;
        UsageError for a later version's journal; OSError.
        """
        path = folder / JOURNAL
        path.touch()
        kept = checkpoint.load(folder, ledger) or Folded()
        folded, rows = kept.journal.size, len(kept.offsets)
        end, lines, results = folded, kept.lines, Results(folder, kept.offsets)
        for event, offset in fold_events(path, ledger, end, lines):
            results.note(event, end)
            end, lines = offset, lines + 1

        results_file = folder / RESULTS
        lost = sum(1 for _ in unknown_results(folder, ledger))
        if lost or (not lines and results_file.is_file() and results_file.stat().st_size):
            what = f"has lost {lost} finished trials that" if lost else "has no whole line,"
            raise JournalError(
                f"{path} {what} {results_file} has. Nothing was changed: put the journal back from a copy, or have "
                f"`sweep repair {folder}` take these results into it and set the rest aside; then resume the sweep."
            )
        if path.stat().st_size > end:
            os.truncate(path, end)
        are_first = sum(offset < folded for offset in results.offsets.values()) == rows  # none was reopened since then
        results.restore(kept.results if are_first else None, rows)
        sync_folder(folder)
        journal = AppendFile(path, kept.journal.read(path, end))
        return cls(folder, ledger=ledger.copy(), journal=journal, lines=lines, results=results, folded=folded)

    def add(self, batch: Sequence[Event], lines: Sequence[bytes]) -> None:
        """Make events durable. After OSError none of them is there, and it may be tried again."""
        offset = self._journal.checksum.size
        self._journal.append(b"".join(lines), sync=True)
        for event, line in zip(batch, lines, strict=True):
            self._ledger.apply(event)
            self._results.note(event, offset)
            offset += len(line)
        self._lines += len(lines)

    def flush(self) -> None:
        """Update results.jsonl. After OSError it may be tried again."""
        self._results.flush()

    @property
    def size(self) -> int:
        """The size of the journal in bytes."""
        return self._journal.checksum.size

    def checkpoint(self, *, at_least: int) -> None:
        """Save the fold of the journal, if that grew by more than `at_least` bytes since the last time."""
        if self.size - self._folded <= at_least:
            return
        self._folded = self.size
        folded = Folded(
            journal=self._journal.checksum,
            lines=self._lines,
            offsets=self._results.offsets,
            results=self._results.digest(),
        )
        try:
            checkpoint.save(self.folder, self._ledger, folded)
        except Exception as error:  # noqa: BLE001 - a checkpoint is disposable
            structlog.get_logger().debug("checkpoint.failed", folder=str(self.folder), reason=repr(error))

    def close(self) -> None:
        self._journal.close()
        self._results.close()
