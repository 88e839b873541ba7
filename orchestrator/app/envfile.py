"""A file of variables for agents, as people keep beside their keys: KEY=VALUE lines.

Read to the letter, because a key that lost a character fails somewhere far away: no variables in values, no escapes, no
comments behind them; only quotes around a whole value are taken off. No message repeats a value.
"""

import re
from pathlib import Path
from typing import Final

from orchestrator.errors import UsageError

_LINE: Final = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>.*)")
_QUOTES: Final = ("'", '"')


def read_variables(file: Path) -> dict[str, str]:
    """The variables in a file; empty lines and lines that begin with # say nothing.

    Raises UsageError that names file and line.
    """
    try:
        lines = file.read_text("utf-8").split("\n")
    except OSError as error:
        raise UsageError(f"--env-file {file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--env-file {file}: is not UTF-8 text") from None
    variables: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if (text := line.strip()) and not text.startswith("#"):
            name, value = _variable(text, f"--env-file {file}, line {number}")
            if name in variables:
                raise UsageError(f"--env-file {file}, line {number}: {name} is there twice")
            variables[name] = value
    return variables


def _variable(text: str, where: str) -> tuple[str, str]:
    match = _LINE.fullmatch(text)
    if match is None:
        raise UsageError(f"{where}: expected KEY=VALUE")
    name, value = match["name"], match["value"]
    if "\0" in value:
        raise UsageError(f"{where}: {name} has a NUL byte, which no variable can hold")
    if value.startswith(_QUOTES):
        if len(value) < 2 or value[-1] != value[0]:
            raise UsageError(f"{where}: {name} begins with a quote that does not end the line")
        value = value[1:-1]
    return name, value
