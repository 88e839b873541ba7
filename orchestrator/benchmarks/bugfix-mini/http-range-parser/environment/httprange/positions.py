"""Which bytes of a file a range is."""

from httprange.syntax import ByteRange


def positions(asked: ByteRange, size: int) -> tuple[int, int] | None:
    """First and last byte, both included; None if the range is not in a file of `size` bytes."""
    if asked.first is None:
        return size - asked.last, size - 1
    if asked.last is None:
        return asked.first, size - 1
    if asked.first > size:
        return None
    return asked.first, min(asked.last, size)
