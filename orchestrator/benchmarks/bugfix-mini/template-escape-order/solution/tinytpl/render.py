"""Fills in a template."""

from collections.abc import Iterator
from typing import Any

from tinytpl.errors import MissingValue
from tinytpl.syntax import If, Node, Value, parse
from tinytpl.values import escape, look_up


def render(template: str, data: dict[str, Any], strict: bool = False) -> str:
    """The template with the values of `data` in it.

    Raises TemplateError; and MissingValue if it is strict and a name is not in the data.
    """
    return "".join(filled(parse(template), data, strict))


def filled(nodes: list[Node], data: dict[str, Any], strict: bool) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
            continue
        value = found(data, node.name, strict)
        if isinstance(node, Value):
            text = "" if value is None else str(value)
            yield text if node.raw else escape(text)
        elif isinstance(node, If):
            if value:
                yield from filled(node.body, data, strict)
        else:
            for item in value or []:
                yield from filled(node.body, {**data, node.variable: item}, strict)


def found(data: dict[str, Any], name: str, strict: bool) -> Any:
    try:
        return look_up(data, name)
    except MissingValue:
        if strict:
            raise
        return None
