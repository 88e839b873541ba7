"""results.jsonl: the latest result of each finished trial, in the order they finished, derived from the journal.

A result whose work is scored again stays until the new one is there.

Of each result only the offset of its line in the journal is kept in memory, so that a file of any size can be compared
with the journal, and rewritten.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from orchestrator.core.errors import InternalError, JournalError
from orchestrator.core.events import Event, TrialFinished, TrialReopened, from_line
from orchestrator.core.ledger import Ledger
from orchestrator.core.records import TrialKey
from orchestrator.rundir.append_file import AppendFile, Checksum, Digest, FileChanged
from orchestrator.rundir.files import JOURNAL, RESULTS, write_atomically

#: A line of the file.
Row = Mapping[str, Any]
#: The keys without which a line is no result.
_REQUIRED: Final = (
    *("benchmark", "scenario", "scenario_name", "arm", "agent", "version", "model", "trial", "started", "finished"),
    *("outcome", "score", "scoring", "exit_status", "exit_reason", "flags", "failure", "attempts", "stages", "usage"),
    *("rewards", "files"),
)


class Results:
    """The file, and the offset in the journal of each trial's result, in the order of both files."""

    def __init__(self, folder: Path, offsets: dict[str, int]) -> None:
        self._journal = folder / JOURNAL
        self._path = folder / RESULTS
        self.offsets = offsets
        #: Lines to append to the file.
        self._pending = bytearray()
        #: None while the file is not known to be right, and must be rewritten.
        self._file: AppendFile | None = None

    def digest(self) -> Digest | None:
        """The digest of the file; None if the file is not complete."""
        return None if self._file is None or self._pending else self._file.checksum.digest()

    def note(self, event: Event, offset: int) -> None:
        """Take an event whose line begins at `offset` of the journal. `flush` writes it to the file."""
        if type(event) is TrialFinished:  # isinstance takes three times as long to say no, which it does nearly always
            if self.offsets.pop(event.trial, None) is not None:
                self._forget()
            self.offsets[event.trial] = offset
            if self._file is not None:
                self._pending += result_line(event)
        elif type(event) is TrialReopened and event.kept is None:
            self.offsets.pop(event.trial, None)
            self._forget()

    def flush(self) -> None:
        """Update the file. After OSError it may be tried again."""
        if self._file is not None and self._pending:
            try:
                self._file.append(bytes(self._pending), sync=False)
            except (FileNotFoundError, FileChanged) as error:
                structlog.get_logger().warning("results.made_anew", reason=str(error))
                self._forget()
            else:
                self._pending.clear()
        if self._file is None:
            self._rewrite()

    def restore(self, known: Digest | None, rows: int) -> None:
        """Rewrite the file unless it agrees with the journal. Raises OSError.

        `known` is the digest of its first `rows` rows; if they have it they are not compared again.
        """
        has, skipped = Checksum(), 0
        with suppress(FileNotFoundError):
            if known is not None and (begun := Checksum().read(self._path, known.size)).digest() == known:
                has, skipped = begun, rows
            with self._path.open("rb") as file:
                file.seek(has.size)
                for line in self._derive(skipped):
                    if file.read(len(line)) != line:
                        break
                    has.add(line)
                else:
                    if not file.read(1):
                        self._file = AppendFile(self._path, has)
                        return
        self._rewrite()

    def close(self) -> None:
        self._forget()

    def _rewrite(self) -> None:
        has = Checksum()

        def lines() -> Iterator[bytes]:
            for line in self._derive():
                has.add(line)
                yield line

        write_atomically(self._path, lines())
        self._file = AppendFile(self._path, has)

    def _derive(self, skipped: int = 0) -> Iterator[bytes]:
        """The lines that the file must have, without the first `skipped`."""
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
        if self._file is not None:
            self._file.close()
            self._file = None


def result_line(event: TrialFinished) -> bytes:
    """The line of a trial's result. Raises JournalError if the result can be decoded but not encoded again."""
    try:
        return orjson.dumps(event.result, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError as error:
        raise JournalError(f"this result is damaged ({error})") from None


def read_results(folder: Path) -> list[Row]:
    """Read the results of a run folder that are there by now; none before the first.

    A last line without its newline is not written to its end yet, and left out. Raises JournalError naming the line
    that is damaged, or if the file cannot be read.
    """
    path = folder / RESULTS
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}.") from None
    return [_row(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]


def _row(line: bytes, where: str) -> Row:
    try:
        row: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise JournalError(f"{where}: {error}: `sweep repair` makes it anew.") from None
    if not isinstance(row, dict) or (missing := [key for key in _REQUIRED if key not in row]):
        what = ", ".join(missing) if isinstance(row, dict) else "an object"
        raise JournalError(f"{where}: {what} is missing: `sweep repair` makes it anew.")
    return row


def unknown_results(folder: Path, ledger: Ledger) -> Iterator[TrialFinished]:
    """The results in the file that are missing in the ledger: the end of the journal, or all of it, was lost.

    The file is never ahead of its journal: a result is written once its event is durable. A result that a reopening
    took back is not missing, because its attempt is known to have ended. Raises OSError.
    """
    path = folder / RESULTS
    if not path.is_file():
        return
    with path.open("rb") as file:
        if sum(1 for _ in file) <= len(ledger.finished):
            return
        file.seek(0)
        for line in file:
            try:
                row = orjson.loads(line)
                key = TrialKey(row["scenario"], row["arm"], int(row["trial"]))
                event = TrialFinished(trial=str(key), attempt=int(row["attempts"][-1]["attempt"]), result=row)
            except (ValueError, KeyError, TypeError, IndexError):
                continue  # the line is not ours
            trial = ledger.trials.get(key)
            if trial is None or trial.attempts < event.attempt:
                yield event
            elif trial.outcome is None and trial.attempt is not None and trial.attempt.number == event.attempt:
                yield event  # that attempt is still under way
