"""Which bytes of a file a range is."""

from httprange.syntax import ByteRange


def positions(asked: ByteRange, size: int) -> tuple[int, int] | None:
    """First and last byte, both included; None if the range is not in a file of `size` bytes."""
    if asked.first is None:
        first, last = max(size - asked.last, 0), size - 1
    else:
        first, last = asked.first, size - 1 if asked.last is None else min(asked.last, size - 1)
    return (first, last) if first < size else None
