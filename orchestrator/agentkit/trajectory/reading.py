"""Parts that several readers share: JSON lines, and the small differences in how messages of models are written."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

#: Bytes of one JSON value: an agent's files are parsed in our own memory.
MAX_VALUE: Final = 16 * 2**20


class TrajectoryError(ValueError):
    """A trajectory that cannot be read; the message names the file, the line and what was expected there."""


def json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The object of each line. An incomplete last line, where the agent was killed, is left out.

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
            yield _as_object(value, path, number)


def printed_objects(path: Path) -> Iterator[Mapping[str, Any]]:
    """The JSON objects in a program's output that have a line to themselves; other lines are skipped."""
    with path.open("rb") as lines:
        for line in iter(lambda: lines.readline(MAX_VALUE), b""):  # a piece of a longer line is not JSON
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
    return _as_object(value, path, 1)


def _as_object(value: Any, path: Path, line: int) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TrajectoryError(f"{path}:{line}: expected a JSON object, found {type(value).__name__}")
    return value


def text(content: Any) -> str:
    """The text of a message's content, which is a string, a list of parts of which some have text, or None.

    A part without text, such as an image, is named in brackets: the document has room for text only.
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
    """A call's arguments: an object, or the JSON text of one; anything else is kept under `value`."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except ValueError:
            return {"value": value}
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"value": value}


def integer(value: Any) -> int | None:
    """The value as a count; None if it is not a number."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def number(value: Any) -> float | None:
    """The value as an amount; None if it is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def timestamp(seconds: Any) -> str | None:
    """Seconds since 1970 as ISO 8601; None if it is not a number."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, OSError, ValueError):
        return None
