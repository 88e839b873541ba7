"""The reader of a file of variables for agents: KEY=VALUE lines.

As other readers of such files do it: `export` before a name, quotes around a value, and a comment behind it (blank and
#) are not part of it, nor are a byte order mark and carriage returns at the ends of lines. All else is read to the
letter, because a key that lost a character fails somewhere far away: no variables in values, no escapes. No message
repeats a value.
"""

import re
from pathlib import Path
from typing import Final

from orchestrator.core.errors import UsageError

_LINE: Final = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=(?P<value>.*)")
_COMMENT: Final = re.compile(r"\s+#.*")
_QUOTED: Final = re.compile(r"""(?P<quote>['"])(?P<value>.*?)(?P=quote)(\s+#.*)?""")
_QUOTES: Final = ("'", '"')


def read_variables(file: Path) -> dict[str, str]:
    """Read the variables of a file; empty lines and lines that begin with # are skipped.

    Raises UsageError that names file and line.
    """
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"--env-file {file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--env-file {file}: is not UTF-8 text") from None
    variables: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        where = f"--env-file {file}, line {number}"
        match = _LINE.fullmatch(line)
        if match is None:
            raise UsageError(f"{where}: expected KEY=VALUE")
        name, value = match["name"], match["value"].lstrip()
        if name in variables:
            raise UsageError(f"{where}: {name} is there twice")
        if "\0" in value:
            raise UsageError(f"{where}: {name} has a NUL byte, which no variable can hold")
        quoted = _QUOTED.fullmatch(value)
        if quoted is None and value.startswith(_QUOTES):
            raise UsageError(f"{where}: {name} begins with a quote, and its value does not end with the next one")
        variables[name] = quoted["value"] if quoted else _COMMENT.sub("", match["value"]).strip()
    return variables
