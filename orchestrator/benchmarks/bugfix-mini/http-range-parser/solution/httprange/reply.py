"""The answer to a request."""

from dataclasses import dataclass, field

from httprange.positions import positions
from httprange.syntax import IgnoredHeader, parse_header


@dataclass(frozen=True)
class Reply:
    status: int
    parts: list[tuple[int, int]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


def respond(header: str | None, size: int, max_parts: int = 5) -> Reply:
    """How to answer a request with this Range header for a file of `size` bytes."""
    if header is None:
        return Reply(200)
    try:
        ranges = parse_header(header)
    except IgnoredHeader:
        return Reply(200)
    if len(ranges) > max_parts:
        return Reply(200)
    found = [part for part in (positions(each, size) for each in ranges) if part is not None]
    if not found:
        return Reply(416, headers={"Content-Range": f"bytes */{size}"})
    if len(found) > 1:
        return Reply(206, found)
    first, last = found[0]
    headers = {"Content-Range": f"bytes {first}-{last}/{size}", "Content-Length": str(last - first + 1)}
    return Reply(206, found, headers)
