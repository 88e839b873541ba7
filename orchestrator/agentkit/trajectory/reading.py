"""Parts that several readers share: JSON lines, and the small differences in how messages of models are written."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from orchestrator.agentkit.trajectory.atif import Event, Metrics

Files = Sequence[Path]
Events = Iterator[Event]
Object = Mapping[str, Any]

#: Limit of one JSON value: an agent's files are parsed in our own memory.
MAX_VALUE_BYTES: Final = 16 * 2**20


class TrajectoryError(ValueError):
    """A trajectory that cannot be read; the message names the file, the line and the expected content."""


def json_lines(path: Path) -> Iterator[Object]:
    """The object of each line. An incomplete last line, where the agent was killed, is left out.

    Raises TrajectoryError for any other line that is not a JSON object.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_VALUE_BYTES + 1), b""), start=1):
            if not line.strip():
                continue
            if len(line) > MAX_VALUE_BYTES:
                raise TrajectoryError(f"{path}:{number}: a line of more than {MAX_VALUE_BYTES:,} bytes")
            try:
                value = json.loads(line.decode(errors="replace"))
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise TrajectoryError(f"{path}:{number}: not a line of JSON: {error}") from error
            yield _as_object(value, path, number)


def printed_objects(path: Path) -> Iterator[Object]:
    """The JSON objects in a program's output that have a line to themselves; other lines are skipped."""
    with path.open("rb") as lines:
        for line in iter(lambda: lines.readline(MAX_VALUE_BYTES), b""):  # a piece of a longer line is not JSON
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def json_document(path: Path) -> Object:
    """The file's one JSON object. Raises TrajectoryError."""
    if path.stat().st_size > MAX_VALUE_BYTES:
        raise TrajectoryError(f"{path}: more than {MAX_VALUE_BYTES:,} bytes")
    try:
        value = json.loads(path.read_bytes().decode(errors="replace"))
    except json.JSONDecodeError as error:
        raise TrajectoryError(f"{path}:{error.lineno}: not a JSON document: {error.msg}") from error
    return _as_object(value, path, 1)


def _as_object(value: Any, path: Path, line: int) -> Object:
    if not isinstance(value, dict):
        raise TrajectoryError(f"{path}:{line}: expected a JSON object, found {type(value).__name__}")
    return value


def inside(value: Any, *keys: str) -> Any:
    """The value below these nested keys; None if one is missing. Raises AttributeError if one is below no object."""
    for key in keys:
        value = (value or {}).get(key)
    return value


def of_type(kind: str, parts: Iterable[Object]) -> list[Object]:
    """The parts with this `type`."""
    return [part for part in parts if part.get("type") == kind]


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


def arguments(value: Any) -> Object:
    """A call's arguments: an object, or the JSON text of one; anything else is kept under `value`."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except ValueError:
            return {"value": value}
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"value": value}


def metrics(used: Object, *, prompt: str, completion: str, cached: str = "", cost: Any = None) -> Metrics:
    """Make metrics of the usage in an agent's file.

    Each of the token counts is a list of paths in `used`, such as `input cache.read`: the numbers there are added up.
    `cost` is the value itself. What is not a number counts as unknown.
    """

    def count(paths: str) -> int | None:
        found = [inside(used, *path.split(".")) for path in paths.split()]
        known = [int(each) for each in found if _is_number(each)]
        return sum(known) if known else None

    return Metrics(
        prompt_tokens=count(prompt),
        completion_tokens=count(completion),
        cached_tokens=count(cached),
        cost_usd=float(cost) if _is_number(cost) else None,
    )


def timestamp(seconds: Any) -> str | None:
    """Seconds since 1970 as ISO 8601; None if it is not a number."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat() if _is_number(seconds) else None
    except (OverflowError, OSError, ValueError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
