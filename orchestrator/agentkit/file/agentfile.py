"""The reader of agent files: from text to a definition, or to messages that name file, line and key.

The parser of TOML keeps no line numbers, so they are looked up in the text afterwards, for messages only.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.agentkit.file.definition import Definition
from orchestrator.core.errors import UsageError

_NAME: Final = r"[\w.\"'-]+"
_TABLE: Final = re.compile(rf"^\s*\[\s*(?P<table>{_NAME})\s*\]")
_KEY: Final = re.compile(rf"^\s*(?P<key>{_NAME})\s*=")
_FENCES: Final = ("'''", '"""')
_WORDS: Final = {
    "tuple_type": "must be a list",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "missing": "is missing",
}


def read_definition(path: Path) -> Definition:
    """Read an agent file; its name is the file's. Raises UsageError that names file, line and key."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: an agent file is UTF-8 text: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: the agent file cannot be read: {error.strerror}") from error
    return parse_definition(text, name=path.stem, file=str(path))


def parse_definition(text: str, *, name: str, file: str) -> Definition:
    """Make a definition of the text of an agent file. Raises UsageError that names file, line and key."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: not valid TOML: {error}") from error
    if data.setdefault("name", name) != name:
        raise UsageError(f"{file}{_line(text, ('name',))}: key name: must be {name!r}, as the file is, or left out")
    try:
        return Definition.model_validate(data)
    except ValidationError as error:
        problems = [f"{file}{_describe(text, data, problem)}" for problem in error.errors(include_url=False)]
        raise UsageError("\n".join(problems)) from error


def _describe(text: str, data: Mapping[str, Any], problem: ErrorDetails) -> str:
    """The line and key of one problem, and its message."""
    key = problem.get("ctx", {}).get("key", "") if problem["type"] == "agent_file" else ""
    location = _as_written(data, (*problem["loc"], *str(key).split(".")) if key else problem["loc"])
    message = _WORDS.get(problem["type"], problem["msg"])
    if problem["type"] == "extra_forbidden":
        table: type[BaseModel] = Definition
        for part in location[:-1]:
            fields = (field for name, field in table.model_fields.items() if part == (field.alias or name))
            table = next((found for field in fields for found in _models(field.annotation)), table)
        keys = [field.alias or name for name, field in table.model_fields.items()]
        near = difflib.get_close_matches(location[-1], keys, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(keys)}"
        message = f"there is no such key; {hint}"
    return f"{_line(text, location)}: key {'.'.join(location)}: {message}"


def _as_written(data: Any, location: tuple[str | int, ...]) -> tuple[str, ...]:
    """Cut the parts of a location that validation added: a short form in the file stands for a table."""
    for depth, part in enumerate(location):
        if not isinstance(data, dict | list):
            return tuple(map(str, location[:depth]))
        inside = data if isinstance(data, dict) else dict(enumerate(data))
        data = inside.get(part)
    return tuple(map(str, location))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _line(text: str, location: tuple[str, ...]) -> str:
    """The line of a key, as `, line 7`; empty where that is unknown, e.g. for a key that is missing."""
    lines: dict[str, int] = {}  # of each table and key outside of multi-line strings, by dotted name
    prefix = fence = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if fence:
            fence = "" if fence in line else fence
            continue
        if table := _TABLE.match(line):
            lines.setdefault(_plain(table["table"]), number)
            prefix = _plain(table["table"]) + "."
        elif key := _KEY.match(line):
            lines.setdefault(prefix + _plain(key["key"]), number)
            fence = next((each for each in _FENCES if line.count(each) % 2), "")

    for length in range(len(location), 0, -1):
        found = lines.get(".".join(location[:length]))
        if found is not None:
            return f", line {found}"
    return ""


def _plain(name: str) -> str:
    return name.replace('"', "").replace("'", "")
