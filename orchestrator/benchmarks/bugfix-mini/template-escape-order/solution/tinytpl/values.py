"""Values by their names, and as HTML."""

import html
from typing import Any

from tinytpl.errors import MissingValue


def look_up(data: dict[str, Any], name: str) -> Any:
    """The value of a dotted name; raises MissingValue."""
    value: Any = data
    for part in name.split("."):
        try:
            if isinstance(value, list):
                value = value[int(part)]
            elif isinstance(value, dict):
                value = value[part]
            else:
                raise MissingValue(name)
        except (KeyError, IndexError, ValueError):
            raise MissingValue(name) from None
    return value


def escape(text: str) -> str:
    """Text as it stands in HTML, in attributes too."""
    return html.escape(text, quote=True)
