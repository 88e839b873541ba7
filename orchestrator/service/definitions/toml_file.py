"""TOML as strangers write it, read in bounded time: what could not be meant is refused before it costs anything.

The standard library's parser takes seconds for a file of a hundred thousand keys, and hours for one key of a hundred
thousand parts; and it gives out whole numbers, and depths, that no JSON of ours can carry further.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final

#: Bytes of one file.
MAX_SIZE: Final = 1 << 20
#: Values, and separators between them, of one file: some 0.3 s.
MAX_VALUES: Final = 20_000
#: Parts of one key, and tables in tables.
MAX_DEPTH: Final = 32
#: Digits of a number; what has more is no number of 64 bits either.
MAX_DIGITS: Final = 100
_MOST_INTEGER: Final = 1 << 63
#: What is text: strings, and comments. Each alternative matches to the end where its end is missing.
_TEXT: Final = re.compile(
    r"""(?xs) \"{3} (?: [^\\] | \\. )*? (?: \"{3,5} | \Z ) | '{3} .*? (?: '{3,5} | \Z )
    | \" (?: [^\"\\\n] | \\[^\n] )* \"? | ' [^'\n]* '? | \# [^\n]*"""
)
_LONG_NUMBER: Final = re.compile(rf"(?<![\w\-.])[+-]?[0-9_]{{{MAX_DIGITS + 1}}}")
_BRACKET: Final = re.compile(r"[\[\]{}]")
_NO_KEY: Final = re.compile(r"[^\w\-.\"' \t]")


class TomlError(ValueError):
    """What is wrong with a file, and with which of its keys, if it is one."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


def parse(data: bytes) -> dict[str, Any]:
    """Read a file's content. Raises TomlError."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise TomlError(f"is not UTF-8 text: {error.reason} at byte {error.start}") from None
    _judge(_TEXT.sub(lambda found: '""' + "\n" * found[0].count("\n"), text))
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise TomlError(f"is not TOML: {error}") from None
    for key, message in _oddities(document):
        raise TomlError(message, key)
    return document


def _judge(structure: str) -> None:
    """Raise TomlError for what the parser would take too long for, or break off at, in a text without its strings."""
    if sum(map(structure.count, "=,[.")) > MAX_VALUES:
        raise TomlError(f"has more than {MAX_VALUES:,} keys and values")
    depth = 0
    for number, line in enumerate(structure.split("\n"), 1):
        if any(run.count(".") >= MAX_DEPTH for run in _NO_KEY.split(line)):
            raise TomlError(f"has a key of more than {MAX_DEPTH} parts", f"line {number}")
        if _LONG_NUMBER.search(line):
            raise TomlError(f"has a number of more than {MAX_DIGITS} digits", f"line {number}")
        for bracket in _BRACKET.findall(line):
            depth += 1 if bracket in "[{" else -1
            if depth > MAX_DEPTH:
                raise TomlError(f"nests deeper than {MAX_DEPTH} levels", f"line {number}")


def _oddities(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and complaint for each value that is TOML and could go no further."""
    left: list[tuple[str, Any, int]] = [(key, value, 1) for key, value in document.items()]
    while left:
        key, value, depth = left.pop()
        if depth > MAX_DEPTH:
            yield key[:100], f"nests deeper than {MAX_DEPTH} levels"
        elif isinstance(value, dict):
            left += [(f"{key}.{name}", each, depth + 1) for name, each in value.items()]
        elif isinstance(value, list):
            left += [(f"{key}[{number}]", each, depth + 1) for number, each in enumerate(value)]
        elif isinstance(value, int) and not -_MOST_INTEGER <= value < _MOST_INTEGER:
            yield key, "is a whole number of more than 64 bits"
        elif isinstance(value, str) and "\0" in value:
            yield key, "has a character NUL, which no program can be given"
        if "\0" in key:
            yield key, "has a character NUL in its name"
