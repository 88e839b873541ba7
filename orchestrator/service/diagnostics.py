"""Mistakes in a scenario's files, gathered so that an author sees all of them at once.

Raising at the first mistake would make a folder of twelve mistakes twelve runs of `sweep check`.
"""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
#: Characters of a value or a key that a message shows.
SHOWN: Final = 80
#: Findings in a short message.
NAMED: Final = 5
#: Words that are compared to find the one that was meant.
_COMPARED: Final = 1000
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Requirement(StrEnum):
    """What a scenario needs of its machine and does not get here; elsewhere it may run as it is."""

    USERS = "users"
    """Other users than root, which images have where the machine lends ids."""
    ENGINE = "engine"
    """A container engine, for several containers."""
    GPU = "gpu"


class Problem(NamedTuple):
    """One finding: an error makes the scenario unusable, a warning changes what it means, a note only informs.

    `file` is relative to the scenario (or benchmark) folder; `key` is a dotted key, or `line 7`, or empty. `need` is
    what the machine lacks; None where the scenario itself is at fault, or asks for what no machine has here.
    """

    severity: Severity
    file: str
    key: str
    message: str
    need: Requirement | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.message) if part)


class Report:
    """Findings in the order they were made."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    def error(self, file: str, key: str, message: str, need: Requirement | None = None) -> None:
        self._add("error", file, key, message, need)

    def warn(self, file: str, key: str, message: str) -> None:
        self._add("warning", file, key, message)

    def note(self, file: str, key: str, message: str) -> None:
        self._add("note", file, key, message)

    def _add(self, severity: Severity, file: str, key: str, message: str, need: Requirement | None = None) -> None:
        self.problems.append(Problem(severity, printable(file), printable(clipped(key)), message, need))


def text(problems: Iterable[Problem]) -> str:
    """Join findings to one message."""
    return "; ".join(map(str, problems))


def few(problems: Sequence[Problem]) -> str:
    """Join the first findings to one message, which stays short however many there are."""
    more = f"; and {len(problems) - NAMED} more: `sweep check` lists them" if len(problems) > NAMED else ""
    return text(problems[:NAMED]) + more


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known word that was probably meant; None where it would take long to find out."""
    if len(word) > SHOWN or len(known) > _COMPARED:
        return None
    found = get_close_matches(word, known, n=1, cutoff=0.75)
    return found[0] if found else None


def hint(word: str, known: Collection[str], otherwise: str) -> str:
    """The end of a message about an unknown word: the known one that was probably meant, or `otherwise`."""
    near = nearest(word, known)
    return f"did you mean {near}?" if near else otherwise


def shown(value: Any) -> str:
    """The value as a message shows it."""
    return clipped(repr(value))


def clipped(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def printable(path: str | os.PathLike[str]) -> str:
    r"""A name as text that can be sent and printed: bytes that are not UTF-8 and control characters become \\xe9."""
    text = os.fspath(path).encode(errors="surrogateescape").decode(errors="backslashreplace")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
