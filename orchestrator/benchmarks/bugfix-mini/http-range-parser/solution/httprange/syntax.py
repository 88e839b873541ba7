"""What stands in a Range header."""

import re
from dataclasses import dataclass

RANGE = re.compile(r"([0-9]*)-([0-9]*)")
BLANKS = " \t"


class IgnoredHeader(ValueError):
    """The header is to be ignored: the whole file is the answer."""


@dataclass(frozen=True)
class ByteRange:
    """`first-last`, `first-` (last is None) or `-length` (first is None, last is the length)."""

    first: int | None
    last: int | None


def parse_range(text: str) -> ByteRange:
    match = RANGE.fullmatch(text)
    if not match or not any(match.groups()):
        raise IgnoredHeader(f"not a range: {text!r}")
    first, last = (int(number) if number else None for number in match.groups())
    if first is not None and last is not None and last < first:
        raise IgnoredHeader(f"ends before it begins: {text!r}")
    return ByteRange(first, last)


def parse_header(header: str) -> list[ByteRange]:
    """The ranges of a header, in their order; raises IgnoredHeader."""
    unit, _, ranges = header.strip(BLANKS).partition("=")
    if unit.lower() != "bytes":
        raise IgnoredHeader(f"another unit: {unit}")
    found = [parse_range(text) for text in (place.strip(BLANKS) for place in ranges.split(",")) if text]
    if not found:
        raise IgnoredHeader("no range at all")
    return found
