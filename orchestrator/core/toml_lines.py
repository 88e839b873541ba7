"""Line numbers of the keys in a TOML file, for messages: the standard parser keeps none."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

_NAME: Final = r"[\w.\"'-]+"
_TABLE: Final = re.compile(rf"^\s*(?P<open>\[\[?)\s*(?P<name>{_NAME})\s*\]")
_KEY: Final = re.compile(rf"^\s*(?P<name>{_NAME})\s*=")
_FENCES: Final = ("'''", '"""')


def line_of(text: str, location: Sequence[str]) -> str:
    """The line of a key, as `, line 7`; empty if it is unknown.

    `location` is the key with the tables that it is in, and the index of a table in a list: `("arms", "0", "agent")`.
    For a key that is missing, or in an inline table, it is the line of the innermost table that has one.
    """
    lines: dict[str, int] = {}
    tables: Counter[str] = Counter()
    prefix = fence = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if fence:  # inside of a string
            fence = "" if fence in line else fence
        elif table := _TABLE.match(line):
            name = re.sub("[\"']", "", table["name"])
            if table["open"] == "[[":
                tables[name] += 1
                name = f"{name}.{tables[name] - 1}"
            lines.setdefault(name, number)
            prefix = f"{name}."
        elif key := _KEY.match(line):
            lines.setdefault(prefix + re.sub("[\"']", "", key["name"]), number)
            fence = next((each for each in _FENCES if line.count(each) % 2), "")
    outward = (".".join(location[:length]) for length in range(len(location), 0, -1))
    return next((f", line {lines[name]}" for name in outward if name in lines), "")
