"""Makes the texts of others safe to print: names, messages, the words of an endpoint or an agent.

A terminal obeys what it is shown (colours, titles, the clipboard), some characters turn the order of others round, and
a newline in a name makes a line that nobody wrote. All of them are shown as escapes, as Python writes them.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final

import orjson

#: Sequences that set colours and weights, and nothing else (ECMA-48, SGR).
_COLOURS: Final = re.compile(r"\x1b\[[0-9;:]*m")


def printable(text: str) -> str:
    r"""Escape the characters of a text that are not printable: `\x1b`, `\n`, `\u202e`, `\udcff` …"""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 trial, 2 trials, 3 devboxes."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('x') else 's'}"


def byte_size(size: float) -> str:
    """A number of bytes for people: 4.0 MB, 1.2 GB."""
    return f"{size / 1e9:,.1f} GB" if abs(size) >= 1e9 else f"{size / 1e6:,.1f} MB"


def shortened(text: str, width: int) -> str:
    """A text on one printable line of at most `width` characters; `…` is where more was."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else f"{line[: width - 1].rstrip()}…"


def printable_lines(text: str) -> list[str]:
    """The lines of a message; those after the first are indented, so that none looks like another message."""
    first, *others = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    return [printable(first), *(f"  {printable(line)}" for line in others)]


def coloured(text: str) -> str:
    """Escape all that is not printable in a text of many lines, but its colours, tabs and line ends.

    A carriage return before a line's end belongs to it; elsewhere it would write over what stands there.
    """
    pieces, at = [], 0
    for colour in _COLOURS.finditer(text):
        pieces += [_laid_out(text[at : colour.start()]), colour.group()]
        at = colour.end()
    return "".join([*pieces, _laid_out(text[at:])])


def _laid_out(text: str) -> str:
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.replace("\r\n", "\n").split("\n"))


def json_line(document: Any, default: Callable[[Any], Any] | None = None) -> str:
    """A document as one line of JSON, its newline included, that is safe to print and means the same."""
    try:
        line = orjson.dumps(document, default=default, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # a name that is not UTF-8, which orjson refuses
        line = json.dumps(document, ensure_ascii=False, default=default, separators=(",", ":"))
    if not line.isprintable():
        line = "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in line)
    return f"{line}\n"
