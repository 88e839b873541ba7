"""What the readers of several formats share: JSON lines, and the small ways in which models' messages are written."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

#: Bytes of one JSON value: what an agent wrote is parsed in our own memory.
MAX_VALUE: Final = 16 * 2**20


class TrajectoryError(ValueError):
    """A trajectory that cannot be read; says which file, which line and what was expected there."""


def json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each line's number and object. A last line that broke off is where the agent was ended, and is left out.

    Raises TrajectoryError for any other line that is not a JSON object.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_VALUE + 1), b""), start=1):
            if not line.strip():
                continue
            if len(line) > MAX_VALUE:
                raise TrajectoryError(f"{path}:{number}: a line of more than {MAX_VALUE:,} bytes")
            try:
                value = json.loads(line.decode(errors="replace"))
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise TrajectoryError(f"{path}:{number}: not a line of JSON: {error}") from error
            yield number, as_object(value, path, number)


def printed_objects(path: Path) -> Iterator[Mapping[str, Any]]:
    """The JSON objects that have a line to themselves in what a program printed; other lines are skipped."""
    with path.open("rb") as lines:
        for line in iter(lambda: lines.readline(MAX_VALUE), b""):  # what is longer is no JSON in parts either
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def json_document(path: Path) -> Mapping[str, Any]:
    """The file's one JSON object. Raises TrajectoryError."""
    if path.stat().st_size > MAX_VALUE:
        raise TrajectoryError(f"{path}: more than {MAX_VALUE:,} bytes")
    try:
        value = json.loads(path.read_bytes().decode(errors="replace"))
    except json.JSONDecodeError as error:
        raise TrajectoryError(f"{path}:{error.lineno}: not a JSON document: {error.msg}") from error
    return as_object(value, path, 1)


def as_object(value: Any, path: Path, line: int) -> Mapping[str, Any]:
    """The value, if it is a JSON object. Raises TrajectoryError."""
    if not isinstance(value, dict):
        raise TrajectoryError(f"{path}:{line}: expected a JSON object, found {type(value).__name__}")
    return value


def text(content: Any) -> str:
    """The words of a message's content: a text, a list of parts of which some have text, or nothing.

    A part without text, e.g. an image, is named in brackets: the format has room for its words only.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(filter(None, map(text, content)))
    if isinstance(content, dict):
        said = content.get("text", content.get("content"))
        return text(said) if said is not None else f"[{content.get('type', 'part')}]"
    return str(content)


def arguments(value: Any) -> Mapping[str, Any]:
    """A call's arguments: an object, or the JSON text of one; what is neither is kept under `value`."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except ValueError:
            return {"value": value}
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"value": value}


def integer(value: Any) -> int | None:
    """A count, where there is one."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def number(value: Any) -> float | None:
    """An amount, where there is one."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def timestamp(seconds: Any) -> str | None:
    """Seconds since 1970 as ISO 8601; None for what is not a number."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, OSError, ValueError):
        return None
