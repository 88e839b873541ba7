"""Dockerfile text: instructions with their line numbers, and words with their quotes and variables undone.

The rules are those of Docker's own reader (the Dockerfile reference, "Format", "Environment replacement" and
"Here-Documents"), because a line that means something else here than there would be found out by an agent's failure.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_HEREDOC: Final = re.compile(r"(?<!<)<<(-?)(['\"]?)([A-Za-z_][A-Za-z0-9_]*)\2")
_CONTINUED: Final = re.compile(r"(^|[^\\])\\\s*$")
_DIRECTIVE: Final = re.compile(r"#\s*escape\s*=\s*(\S+)\s*", re.IGNORECASE)
_WITH_HEREDOCS: Final = frozenset({"RUN", "COPY", "ADD"})
_VARIABLE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-+])([^{}]*))?\}|([A-Za-z_][A-Za-z0-9_]*)")


class Mistake(Exception):
    """An instruction is wrong; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heredoc:
    """`<<NAME … NAME`; its text counts as it is when the name is quoted."""

    name: str
    is_quoted: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction; `line` is where it starts, from 1. `rest` has its continuation lines joined."""

    line: int
    keyword: str
    rest: str
    heredocs: tuple[Heredoc, ...] = ()


class Lines:
    """Takes a text apart. `mistakes` are (line, why) of what could not be read."""

    def __init__(self, text: str) -> None:
        self._lines = text.removeprefix("\ufeff").splitlines()
        self._at = 0
        self.mistakes: list[tuple[int, str]] = []

    def instructions(self) -> Iterator[Instruction]:
        """Yield the instructions in order."""
        while self._at < len(self._lines):
            number, text = self._at + 1, self._lines[self._at].strip()
            self._at += 1
            if directive := _DIRECTIVE.fullmatch(text):
                if directive[1] != "\\":
                    self.mistakes.append((number, "another escape character than \\ is not supported"))
                continue
            if not text or text.startswith("#"):
                continue
            while _CONTINUED.search(text):
                text = text.rstrip()[:-1]
                while self._at < len(self._lines) and self._lines[self._at].strip()[:1] in {"", "#"}:
                    self._at += 1  # comments and empty lines between lines that continue do not count
                if self._at == len(self._lines):
                    break
                text += self._lines[self._at].rstrip()
                self._at += 1
            keyword, _, rest = re.sub(r"\A(\S+)\s+", r"\1 ", text).partition(" ")
            heredocs: list[Heredoc] = []
            for dash, quote, name in _HEREDOC.findall(rest) if keyword.upper() in _WITH_HEREDOCS else ():
                body: list[str] = []
                while self._at < len(self._lines):
                    line = self._lines[self._at].lstrip("\t") if dash else self._lines[self._at]
                    self._at += 1
                    if line == name:
                        break
                    body.append(line + "\n")
                else:
                    self.mistakes.append((number, f"the here-document has no end: expected a line {name}"))
                heredocs.append(Heredoc(name=name, is_quoted=bool(quote), text="".join(body)))
            yield Instruction(line=number, keyword=keyword.upper(), rest=rest.strip(), heredocs=tuple(heredocs))


def without_heredocs(rest: str) -> str:
    """Return the instruction's words without its here-documents."""
    return _HEREDOC.sub("", rest).strip()


def split(text: str) -> list[str]:
    """Split into words as they were written: quotes keep blanks together, and stay. Raises Mistake."""
    words: list[str] = []
    word, quote, at = "", "", 0
    while at < len(text):
        char = text[at]
        if char == "\\" and quote != "'" and at + 1 < len(text):
            word, at = word + text[at : at + 2], at + 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char.isspace():
            words, word, at = [*words, word] if word else words, "", at + 1
            continue
        word, at = word + char, at + 1
    if quote:
        raise Mistake(f"a quote {quote} is not closed")
    return [*words, word] if word else words


def expand(word: str, variables: Mapping[str, str], *, is_quoted_text: bool = False) -> str:
    """Return a word without its quotes, with $NAME, ${NAME}, ${NAME:-x} and ${NAME:+x} filled in. Raises Mistake.

    With `is_quoted_text`, quotes are text: so here-documents are expanded.
    """
    out, quote, at = [], "", 0
    while at < len(word):
        char = word[at]
        if char == "\\" and quote != "'" and at + 1 < len(word):
            keeps = quote == '"' and word[at + 1] not in '"$\\'
            out.append(word[at : at + 2] if keeps or (is_quoted_text and word[at + 1] not in "$\\") else word[at + 1])
            at += 2
        elif char == "$" and quote != "'" and (found := _VARIABLE.match(word, at + 1)):
            name, operator, other = found[1] or found[4], found[2] or "", found[3] or ""
            value, at = variables.get(name), found.end()
            is_there = bool(value) if operator.startswith(":") else value is not None
            if operator.endswith("+"):
                value = expand(other, variables) if is_there else ""
            elif operator and not is_there:
                value = expand(other, variables)
            out.append(value or "")
        elif char == "$" and quote != "'" and word[at + 1 : at + 2] == "{":
            raise Mistake(f"${word[at + 1 :]}: only ${{NAME}}, ${{NAME:-x}} and ${{NAME:+x}} are supported")
        elif char in "'\"" and quote in {"", char} and not is_quoted_text:
            quote, at = "" if quote else char, at + 1
        else:
            out.append(char)
            at += 1
    if quote:
        raise Mistake(f"a quote {quote} is not closed")
    return "".join(out)
