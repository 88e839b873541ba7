"""The output formats, in one table: a new one is an entry here.

Its secret: how a record becomes text. Commands give every format for programs the same records, and offer each as a
flag; `--json` is one. Formats for people have no encoder: commands say the same in sentences and tables.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Final, cast

from orchestrator.core.printable import json_line

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of standard output.

    `encode` turns a record into text with its newline, for programs; None for people. It may be called by any thread,
    and it may keep state: a process writes in one format. `help` describes the format's flag. `is_redrawn` says that a
    sweep is shown as a screen that changes in place.
    """

    name: str
    help: str = ""
    encode: Callable[[Record], str] | None = None
    is_redrawn: bool = False

    @property
    def is_for_programs(self) -> bool:
        """True if standard output gets records only; sentences then go to standard error."""
        return self.encode is not None


def _plain(value: object) -> object:
    """Convert a value that JSON cannot express: a dataclass, or a set, which has no order."""
    return asdict(cast("Any", value)) if is_dataclass(value) else sorted(cast("Any", value))


SCREEN: Final = Format(name="screen", is_redrawn=True)
LINES: Final = Format(name="lines")
JSON: Final = Format(
    name="json",
    help="Print JSON lines on standard output, for programs.",
    encode=lambda record: json_line(record, _plain),
)
FORMATS: Final = {each.name: each for each in (SCREEN, LINES, JSON)}


def find(name: str | None) -> Format:
    """Return the format of that name; without a name, the one for people that standard output can show."""
    if name is not None:
        return FORMATS[name]
    can_redraw = os.environ.get("TERM", "dumb").lower() not in {"", "dumb", "unknown"}
    return SCREEN if sys.stdout.isatty() and can_redraw else LINES
