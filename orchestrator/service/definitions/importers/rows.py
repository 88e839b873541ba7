"""Rows of a file: JSON objects, one a line, or the lines of a CSV table; also compressed by gzip.

A row says where it is and what it lacks: which file, which line, which key, and what was expected.
"""

import csv
import gzip
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.common.json_lines import objects
from orchestrator.core.errors import UsageError
from orchestrator.service.diagnostics import hint


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """A row, and the line of its file at which it begins or, in CSV, ends."""

    file: Path
    line: int
    values: Mapping[str, Any]

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
        """Return a list of texts; of none where the key is missing. Raises UsageError."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.mistake(key, "a list of texts was expected")
        return value

    def mistake(self, key: str, what: str) -> UsageError:
        return UsageError(f"{self.file}: line {self.line}: {key}: {what}.")


def read_rows(file: Path) -> Iterator[SourceRow]:
    """Read the rows of a file by its name: .jsonl, .json (an array) or .csv, each also with .gz. Blocking.

    Raises UsageError.
    """
    name = file.name.removesuffix(".gz")
    try:
        data = gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(f"{file}: cannot be read: {why}.") from None
    if name.endswith(".csv"):
        table = csv.DictReader(io.StringIO(text, newline=""))
        yield from (SourceRow(file=file, line=table.line_num, values=row) for row in table)
        return
    if not name.endswith((".jsonl", ".json")):
        raise UsageError(f"{file}: .jsonl, .json or .csv was expected, also with .gz.")
    yield from (SourceRow(file=file, line=line, values=row) for line, row in objects(text, file))
