"""results.jsonl: the latest result of each finished trial, in the order they finished; all of it from the journal.

What is kept in memory of a result is where in the journal its line is, so that the file can be compared with the
journal, and written anew, however large it is.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import orjson
import structlog

from orchestrator.core.errors import InternalError, JournalError
from orchestrator.core.events import Event, TrialFinished, TrialReopened, from_line
from orchestrator.core.ledger import Ledger
from orchestrator.core.records import TrialKey
from orchestrator.rundir.append_file import Changed, Proof, Sum, Tail
from orchestrator.rundir.files import JOURNAL, RESULTS, write_atomically


class Results:
    """The file, and where in the journal its lines come from: trial to byte offset, in the order of both files."""

    def __init__(self, folder: Path, offsets: dict[str, int]) -> None:
        self._journal = folder / JOURNAL
        self._path = folder / RESULTS
        self.offsets = offsets
        #: What waits to be added to the file.
        self._pending = bytearray()
        #: None while the file is not known to be right, and is to be written anew.
        self._tail: Tail | None = None

    def proof(self) -> Proof | None:
        """What is in the file; None if that is not all that it must have."""
        return None if self._tail is None or self._pending else self._tail.sum.proof()

    def note(self, event: Event, offset: int) -> None:
        """Take in an event whose line begins at this offset of the journal. It shows in the file after `flush`."""
        if type(event) is TrialFinished:  # isinstance takes thrice as long to say no, and that to nearly every event
            self.offsets[event.trial] = offset
            if self._tail is not None:
                self._pending += result_line(event)
        elif type(event) is TrialReopened:
            self.offsets.pop(event.trial, None)
            self._forget()

    def flush(self) -> None:
        """Bring the file up to date. Raises OSError; it may be tried again."""
        if self._tail is not None and self._pending:
            try:
                self._tail.append(bytes(self._pending), sync=False)
            except (FileNotFoundError, Changed) as error:
                structlog.get_logger().warning("results.made_anew", reason=str(error))
                self._forget()
            else:
                self._pending.clear()
        if self._tail is None:
            self._rewrite()

    def restore(self, known: Proof | None, rows: int) -> None:
        """Make the file what the journal says, if it is not. `known` is its beginning if it is right, so many rows.

        Raises OSError.
        """
        try:
            has = self._compare(known, rows)
        except FileNotFoundError:
            has = None
        if has is None:
            self._rewrite()
        else:
            self._tail = Tail(self._path, has)

    def close(self) -> None:
        """Let go of the file."""
        self._forget()

    def _compare(self, known: Proof | None, rows: int) -> Sum | None:
        """What is in the file, None if that is not what the journal says."""
        has, skipped = Sum(), 0
        if known is not None:
            begun = Sum().read(self._path, known.size)
            if begun.proof() == known:
                has, skipped = begun, rows
        with self._path.open("rb") as file:
            file.seek(has.size)
            for line in self._derive(skipped):
                if file.read(len(line)) != line:
                    return None
                has.add(line)
            return None if file.read(1) else has

    def _rewrite(self) -> None:
        has = Sum()

        def lines() -> Iterator[bytes]:
            for line in self._derive():
                has.add(line)
                yield line

        write_atomically(self._path, lines())
        self._tail = Tail(self._path, has)

    def _derive(self, skipped: int = 0) -> Iterator[bytes]:
        """The lines that the file must have, without the first."""
        with self._journal.open("rb", buffering=1 << 16) as file:
            for offset in islice(self.offsets.values(), skipped, None):
                file.seek(offset)
                event = from_line(file.readline())
                if not isinstance(event, TrialFinished):
                    raise InternalError(f"{self._journal}, byte {offset}: the end of a trial was there before.")
                try:
                    line = result_line(event)
                except JournalError as error:
                    raise JournalError(
                        f"{self._journal}, byte {offset}: {error}. `sweep repair` keeps what can be read."
                    ) from None
                yield line

    def _forget(self) -> None:
        self._pending.clear()
        if self._tail is not None:
            self._tail.close()
            self._tail = None


def result_line(event: TrialFinished) -> bytes:
    """The line that the end of a trial gives. Raises JournalError for what more can be read of than be written."""
    try:
        return orjson.dumps(event.result, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError as error:
        raise JournalError(f"this result is damaged ({error})") from None


def unknown_results(folder: Path, ledger: Ledger) -> Iterator[TrialFinished]:
    """The results in the file that a journal with this meaning should have and has not: its end, or all, was lost.

    The file is never ahead of its journal: a result is there once it is durable. A result that was taken back by a
    reopening is none of these, because its attempt is known to have ended. Raises OSError.
    """
    path = folder / RESULTS
    if not path.is_file():
        return
    with path.open("rb") as file:
        if sum(1 for _ in file) <= len(ledger.finished):
            return
        file.seek(0)
        for line in file:
            event = _finished(line)
            if event is not None and _is_unknown(event, ledger):
                yield event


def _finished(line: bytes) -> TrialFinished | None:
    """The event that a line of the file came from, if it is one of ours."""
    try:
        row = orjson.loads(line)
        key = TrialKey(row["scenario"], row["arm"], int(row["trial"]))
        return TrialFinished(trial=str(key), attempt=int(row["attempts"][-1]["attempt"]), result=row)
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _is_unknown(event: TrialFinished, ledger: Ledger) -> bool:
    trial = ledger.trials.get(TrialKey.parse(event.trial))
    if trial is None or trial.attempts < event.attempt:
        return True
    is_under_way = trial.attempt is not None and trial.attempt.number == event.attempt
    return trial.outcome is None and is_under_way
