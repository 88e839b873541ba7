"""Fills in a template."""

import re
from typing import Any

from tinytpl.errors import TemplateError
from tinytpl.values import escape, look_up

NAME = r"\w+(?:\.\w+)*"
VALUE = re.compile(r"\{\{\s*(" + NAME + r")\s*(\|\s*raw)?\s*\}\}")
LOOP = re.compile(r"\{%\s*for (\w+) in (" + NAME + r")\s*%\}(.*?)\{%\s*end\s*%\}", re.DOTALL)
CONDITION = re.compile(r"\{%\s*if (" + NAME + r")\s*%\}(.*?)\{%\s*end\s*%\}", re.DOTALL)


def render(template: str, data: dict[str, Any]) -> str:
    """The template with the values of `data` in it; raises TemplateError."""

    def loop(match: re.Match[str]) -> str:
        variable, items, body = match.groups()
        return "".join(render(body, {**data, variable: item}) for item in look_up(data, items))

    def condition(match: re.Match[str]) -> str:
        return render(match[2], data) if look_up(data, match[1]) else ""

    def value(match: re.Match[str]) -> str:
        found = look_up(data, match[1])
        text = str(found) if found else ""
        return text if match[2] else escape(text)

    text = VALUE.sub(value, CONDITION.sub(condition, LOOP.sub(loop, template)))
    if "{%" in text:
        raise TemplateError("a block is not closed, or not known")
    return text
