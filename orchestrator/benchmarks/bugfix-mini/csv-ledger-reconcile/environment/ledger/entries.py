"""An entry of either ledger."""

from dataclasses import dataclass
from datetime import date


class FormatError(ValueError):
    """A file is not in the format; the message says where."""


@dataclass(frozen=True)
class Entry:
    line: int  # 1 for the first after the heading
    date: date
    cents: int  # positive: money came in
    reference: str  # as it stands in the file
    text: str
