"""Values by their names, and as HTML."""

from typing import Any


def look_up(data: dict[str, Any], name: str) -> Any:
    """The value of a dotted name."""
    value: Any = data
    for part in name.split("."):
        if isinstance(value, list):
            value = value[int(part)]
        else:
            value = value.get(part)
    return value


def escape(text: str) -> str:
    """Text as it stands in HTML."""
    text = text.replace("<", "&lt;")
    text = text.replace(">", "&gt;")
    return text.replace("&", "&amp;")
