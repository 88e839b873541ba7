"""The blocks of a template as a tree.

The whole template is read before anything is filled in: a value is never looked at as a template, and a fault shows
wherever it stands.
"""

import re
from dataclasses import dataclass, field

from tinytpl.errors import TemplateError

NAME = r"\w+(?:\.\w+)*"
TAG = re.compile(r"\{\{\s*(?P<value>" + NAME + r")\s*(?P<raw>\|\s*raw)?\s*\}\}|\{%\s*(?P<block>.*?)\s*%\}", re.DOTALL)
LOOP = re.compile(r"for\s+(\w+)\s+in\s+(" + NAME + ")")
CONDITION = re.compile(r"if\s+(" + NAME + ")")


@dataclass
class Value:
    name: str
    raw: bool


@dataclass
class If:
    name: str
    body: "list[Node]" = field(default_factory=list)


@dataclass
class For:
    variable: str
    name: str
    body: "list[Node]" = field(default_factory=list)


Node = str | Value | If | For


def parse(template: str) -> list[Node]:
    """The nodes of a template; raises TemplateError."""
    bodies: list[list[Node]] = [[]]  # of the blocks that are open, the innermost last
    position = 0
    for tag in TAG.finditer(template):
        bodies[-1].append(text(template[position : tag.start()]))
        position = tag.end()
        if tag["value"]:
            bodies[-1].append(Value(tag["value"], bool(tag["raw"])))
        elif tag["block"] == "end":
            if len(bodies) == 1:
                raise TemplateError("an end without a block")
            bodies.pop()
        else:
            opened = block(tag["block"])
            bodies[-1].append(opened)
            bodies.append(opened.body)
    if len(bodies) > 1:
        raise TemplateError("a block without an end")
    return [*bodies[0], text(template[position:])]


def text(found: str) -> str:
    if "{%" in found:
        raise TemplateError("a {% without %}")
    return found


def block(content: str) -> If | For:
    if match := LOOP.fullmatch(content):
        return For(match[1], match[2])
    if match := CONDITION.fullmatch(content):
        return If(match[1])
    raise TemplateError(f"unknown block: {content}")
