"""The output formats, in one table: a new one is an entry here.

Its secret: how a record, or a table, becomes text. Commands give every format for programs the same records, and offer
each as a flag; `--json` is one. Commands that have a table offer the formats of tables too. Formats for people have no
encoder: commands say the same in sentences and tables.
"""

import csv
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Final, cast

from orchestrator.core.printable import json_line, printable

Record = Mapping[str, Any]
#: What has a meaning in a cell of Markdown, or would be markup there.
_MARKUP: Final = re.compile(r"[\\`*_|<>\[\]]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of standard output.

    `encode` turns a record into text with its newline, for programs; None for people. It may be called by any thread,
    and it may keep state: a process writes in one format. `tabulate` turns the headings and the rows of a table into
    text, in formats that are nothing but tables; with `has_words` its cells are as people read them. `help` describes
    the format's flag. `is_redrawn` says that a sweep is shown as a screen that changes in place.
    """

    name: str
    help: str = ""
    encode: Callable[[Record], str] | None = None
    tabulate: Callable[[Sequence[str], Iterable[Sequence[object]]], str] | None = None
    has_words: bool = False
    is_redrawn: bool = False

    @property
    def is_for_programs(self) -> bool:
        """True if standard output gets records, or a table, only; sentences then go to standard error."""
        return self.encode is not None or self.tabulate is not None


def _plain(value: object) -> object:
    """Convert a value that JSON cannot express: a dataclass, or a set, which has no order."""
    return asdict(cast("Any", value)) if is_dataclass(value) else sorted(cast("Any", value))


class _Lines(list[str]):
    """What a writer of the standard library writes to."""

    write = list.append


def _as_csv(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(headings)
    for row in rows:
        writer.writerow(" ".join(map(str, each)) if isinstance(each, list | tuple) else each for each in row)
    return "\n".join(map(printable, "".join(lines).split("\n")))


def _as_markdown(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Iterable[object]) -> str:
        words = (_MARKUP.sub(lambda found: f"&#{ord(found[0])};", printable(str(each))) for each in cells)
        return f"| {' | '.join(words)} |\n"

    return "".join([line(headings), f"|{' --- |' * len(headings)}\n", *map(line, rows), "\n"])


SCREEN: Final = Format(name="screen", is_redrawn=True)
LINES: Final = Format(name="lines")
JSON: Final = Format(
    name="json",
    help="Print JSON lines on standard output, for programs.",
    encode=lambda record: json_line(record, _plain),
)
CSV: Final = Format(name="csv", help="Print the table as CSV, with a column for each value.", tabulate=_as_csv)
MARKDOWN: Final = Format(
    name="md", help="Print the table as Markdown, such as for a pull request.", tabulate=_as_markdown, has_words=True
)
FORMATS: Final = {each.name: each for each in (SCREEN, LINES, JSON, CSV, MARKDOWN)}


def find(name: str | None) -> Format:
    """Return the format of that name; without a name, the one for people that standard output can show."""
    if name is not None:
        return FORMATS[name]
    can_redraw = os.environ.get("TERM", "dumb").lower() not in {"", "dumb", "unknown"}
    return SCREEN if sys.stdout.isatty() and can_redraw else LINES
