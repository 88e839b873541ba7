"""What is wrong with a scenario's files, gathered so that an author sees all of it at once.

Raising at the first mistake would make a folder of twelve mistakes twelve runs of `sweep check`.
"""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]


class Problem(NamedTuple):
    """One finding: an error makes the thing unusable, a warning changes what it means, a note only says so.

    `file` is relative to the scenario (or benchmark) folder; `key` is a dotted key, or `line 7`, or empty.
    """

    severity: Severity
    file: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.message) if part)


class Report:
    """Findings in the order they were made."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    def error(self, file: str, key: str, message: str) -> None:
        self.problems.append(Problem("error", file, key, message))

    def warn(self, file: str, key: str, message: str) -> None:
        self.problems.append(Problem("warning", file, key, message))

    def note(self, file: str, key: str, message: str) -> None:
        self.problems.append(Problem("note", file, key, message))


def text(problems: Iterable[Problem]) -> str:
    """Findings as one message."""
    return "; ".join(map(str, problems))


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known word that was probably meant."""
    found = get_close_matches(word, known, n=1, cutoff=0.75)
    return found[0] if found else None
