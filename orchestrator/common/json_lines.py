"""JSON that people give us: an object a line, or one array of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from orchestrator.core.errors import UsageError


def objects(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects with the lines at which they begin; those of an array are all of line 1.

    A line ends with a newline and nothing else: other ends of lines may stand in a text. `file` is for messages. Raises
    UsageError.
    """
    is_array = text.lstrip().startswith("[")
    for line, piece in [(1, text)] if is_array else enumerate(text.split("\n"), 1):
        if not piece.strip():
            continue
        try:
            found = orjson.loads(piece)
        except orjson.JSONDecodeError as error:
            raise UsageError(f"{file}: line {line}: {error}.") from None
        for each in found if isinstance(found, list) else [found]:
            if not isinstance(each, dict):
                raise UsageError(f"{file}: line {line}: a JSON object was expected.")
            yield line, each
