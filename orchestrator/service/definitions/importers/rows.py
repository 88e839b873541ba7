"""Rows of a file: JSON objects, one a line, the lines of a CSV table, both also compressed by gzip; or of Parquet.

A row says where it is and what it lacks: which file, which line, which key, and what was expected.
"""

import csv
import gzip
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from orchestrator.common.json_lines import objects
from orchestrator.core.errors import UsageError
from orchestrator.service.diagnostics import hint

#: Rows of a Parquet file that are in memory at a time: a row may have megabytes.
_BATCH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """A row, and where in its file it is: the line at which it begins or, in CSV, ends, or its number in Parquet.

    A file that is one record has no such place.
    """

    file: Path
    values: Mapping[str, Any]
    place: str = ""

    def text(self, *keys: str, otherwise: str | None = None) -> str:
        """Return the text of the first of these keys that is there. Raises UsageError where none is, or it is none."""
        for key in keys:
            value = self.values.get(key)
            if value is not None and value != "":
                if not isinstance(value, str | int):
                    raise self.mistake(key, f"is {type(value).__name__}; a text was expected")
                return str(value)
        if otherwise is None:
            near = hint(keys[0], [str(each) for each in self.values], f"it has {', '.join(map(str, self.values))}")
            raise self.mistake(keys[0], f"is missing: {near}")
        return otherwise

    def texts(self, key: str) -> list[str]:
        """Return a list of texts, which may be a text of JSON; an empty one where the key is missing.

        Raises UsageError.
        """
        value = self.values.get(key) or []
        if isinstance(value, str):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError as error:
                raise self.mistake(key, f"is no list, and no text of one in JSON: {error}") from None
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.mistake(key, "a list of texts was expected")
        return value

    def seconds(self, key: str, *, otherwise: float) -> float:
        """Return a time, which may be a text. Raises UsageError."""
        value = self.values.get(key)
        if value is None or value == "":
            return otherwise
        try:
            return float(value)
        except (TypeError, ValueError):
            raise self.mistake(key, f"{value!r}: a number of seconds was expected") from None

    def mistake(self, key: str, what: str) -> UsageError:
        return UsageError(": ".join(filter(None, (str(self.file), self.place, key, f"{what}."))))


def read_rows(file: Path) -> Iterator[SourceRow]:
    """Read the rows of a file by its name: .jsonl, .json (an array) or .csv, each also with .gz, or .parquet.

    Blocking. Raises UsageError.
    """
    if file.name.endswith(".parquet"):
        yield from _read_parquet(file)
        return
    name = file.name.removesuffix(".gz")
    try:
        data = gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(f"{file}: cannot be read: {why}.") from None
    if name.endswith(".csv"):
        table = csv.DictReader(io.StringIO(text, newline=""))
        yield from (SourceRow(file=file, place=f"line {table.line_num}", values=row) for row in table)
        return
    if not name.endswith((".jsonl", ".json")):
        raise UsageError(f"{file}: .jsonl, .json or .csv was expected, also with .gz, or .parquet.")
    yield from (SourceRow(file=file, place=f"line {line}", values=row) for line, row in objects(text, file))


def _read_parquet(file: Path) -> Iterator[SourceRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        why = "Parquet is read with pyarrow, which is not installed: pip install 'sweep-orchestrator[parquet]'"
        raise UsageError(f"{file}: {why}.") from None
    try:
        with ParquetFile(file) as table:
            rows = (row for batch in table.iter_batches(batch_size=_BATCH) for row in batch.to_pylist())
            yield from (SourceRow(file=file, place=f"row {number}", values=row) for number, row in enumerate(rows, 1))
    except (OSError, ArrowException) as error:
        raise UsageError(f"{file}: cannot be read: {error}.") from None
