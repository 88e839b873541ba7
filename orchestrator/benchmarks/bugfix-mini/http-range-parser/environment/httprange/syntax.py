"""What stands in a Range header."""

from dataclasses import dataclass


class IgnoredHeader(ValueError):
    """The header is to be ignored: the whole file is the answer."""


@dataclass(frozen=True)
class ByteRange:
    """`first-last`, `first-` (last is None) or `-length` (first is None, last is the length)."""

    first: int | None
    last: int | None


def parse_range(text: str) -> ByteRange:
    first, _, last = text.partition("-")
    if not first and not last:
        raise IgnoredHeader("an empty range")
    try:
        return ByteRange(int(first) if first else None, int(last) if last else None)
    except ValueError as error:
        raise IgnoredHeader(str(error)) from None


def parse_header(header: str) -> list[ByteRange]:
    """The ranges of a header, in their order; raises IgnoredHeader."""
    unit, _, ranges = header.partition("=")
    if unit != "bytes":
        raise IgnoredHeader(f"another unit: {unit}")
    return [parse_range(text.strip()) for text in ranges.split(",")]
