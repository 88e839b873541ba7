"""Logs and patches as markup. Colours that an agent printed stay; every other control sequence is shown, not obeyed.

Files may be of any size: they are read in pieces of bytes that end with a line where they can.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markupsafe import Markup, escape

from orchestrator.rundir.files import open_regular

#: Bytes of a piece of a log, and of the search for a text at a time.
PIECE_BYTES: Final = 1 << 16
SEARCH_BYTES: Final = 1 << 20
#: Bytes of a patch, of a list of changes and of a scorer's log that a page shows.
SHOWN_BYTES: Final = 1 << 18
_COLOURS: Final = re.compile(r"\x1b\[([0-9;:]*)m")
_CODE_DIGITS: Final = 3
_LETTERS: Final = {1: "bold", 2: "faint", 3: "italic", 4: "underline"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes `begin` to `end` of a file that has `size` now, as markup."""

    html: Markup
    begin: int
    end: int
    size: int


def read_piece(
    path: Path,
    *,
    at: int | None = None,
    before: int | None = None,
    is_near: bool = False,
    is_over: bool = True,
    limit: int = PIECE_BYTES,
) -> Piece:
    """Read a piece from byte `at` on, or the one that ends at `before`; without both, the end of the file.

    A piece ends with a line, and one that is not read from `at` on begins with one, unless a line is longer than it.
    With `is_near` it begins with the next line after `at`. Of a file that grows, `is_over` being false, a last line
    without its end is left for the next piece. Raises OSError.
    """
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        until = size if before is None else min(before, size)
        begin = max(0, until - limit) if at is None else min(at, size)
        file.seek(max(0, begin - 1))
        previous = file.read(1) if begin else b"\n"
        data = file.read(limit if at is not None else until - begin)
    if previous != b"\n" and (at is None or is_near):
        skipped = data.find(b"\n") + 1
        if skipped < len(data):
            begin, data = begin + skipped, data[skipped:]
    if not is_over or (at is not None and begin + len(data) < size):
        whole = data.rfind(b"\n") + 1
        data = data[:whole] if whole else _without_torn_letter(data)
    return Piece(html=log_markup(data), begin=begin, end=begin + len(data), size=size)


def _without_torn_letter(data: bytes) -> bytes:
    """Cut off the beginning of a letter whose other bytes are not there."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if back < needed and back < len(data) else data
        if byte < 0x80:
            break
    return data


def find(path: Path, text: str, at: int) -> int | None:
    """Find the first line with a text after byte `at`; returns where the line begins, or None. Raises OSError."""
    wanted = text.encode()
    with open_regular(path) as file:
        file.seek(at)
        begin, kept = at, b""
        while block := file.read(SEARCH_BYTES):
            data = kept + block
            if (found := data.lower().find(wanted.lower())) >= 0:
                return begin + max(data.rfind(b"\n", 0, found) + 1, found - PIECE_BYTES // 4)
            kept = data[-(PIECE_BYTES // 4) :]
            begin += len(data) - len(kept)
    return None


def log_markup(data: bytes) -> Markup:
    """Make markup of what an agent printed."""
    text = data.decode(errors="backslashreplace").replace("\r\n", "\n")
    pieces, at, looks = [], 0, list[str]()
    for colour in _COLOURS.finditer(text):
        pieces.append(_look(text[at : colour.start()], looks))
        looks = _looks(looks, colour[1])
        at = colour.end()
    pieces.append(_look(text[at:], looks))
    return Markup("").join(pieces)


def _looks(before: list[str], codes: str) -> list[str]:
    """The classes after a sequence of codes; those that are not known change nothing."""
    numbers = [int(each) if len(each) <= _CODE_DIGITS else -1 for each in re.split("[;:]", codes) if each] or [0]
    looks = list(before)
    while numbers:
        code = numbers.pop(0)
        if code == 0:
            looks = []
        elif code in _LETTERS:
            looks = [*(each for each in looks if each != _LETTERS[code]), _LETTERS[code]]
        elif code in {22, 23, 24}:
            gone = {22: {"bold", "faint"}, 23: {"italic"}, 24: {"underline"}}[code]
            looks = [each for each in looks if each not in gone]
        elif code in {38, 48}:  # a colour of a palette or a mixed one; of those only the first sixteen have a name
            chosen, numbers = numbers[:2], numbers[2 if numbers[:1] == [5] else 4 :]
            if code == 38 and chosen[:1] == [5] and len(chosen) == 2 and chosen[1] < 16:
                looks = [*(each for each in looks if not each.startswith("c")), f"c{chosen[1]}"]
        elif 30 <= code <= 39 or 90 <= code <= 97:
            looks = [each for each in looks if not each.startswith("c")]
            if code != 39:
                looks.append(f"c{code - 30 if code < 90 else code - 82}")
    return looks


def _look(text: str, looks: list[str]) -> Markup:
    shown = visible(text)
    return Markup('<span class="{}">{}</span>').format(" ".join(looks), shown) if looks and text else shown


def visible(text: str) -> Markup:
    """Escape a text of many lines: what no reader could see, or what turns text round, is shown as Python writes it."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return escape(text)
    pieces, at = [], 0
    for index, letter in enumerate(text):
        if letter not in "\n\t" and not letter.isprintable():
            shown = letter.encode("unicode_escape").decode()
            pieces += [escape(text[at:index]), Markup('<span class="escape">{}</span>').format(shown)]
            at = index + 1
    return Markup("").join([*pieces, escape(text[at:])])


def patch_markup(data: bytes) -> Markup:
    """Make markup of a patch in unified format: a line has a class for what it is."""
    lines = []
    for line in data.decode(errors="backslashreplace").replace("\r\n", "\n").removesuffix("\n").split("\n"):
        kind = next((kind for beginning, kind in _DIFF if line.startswith(beginning)), "")
        lines.append(Markup('<span class="{}">{}</span>').format(kind, visible(line) or Markup("&nbsp;")))
    return Markup("").join(lines)


_DIFF: Final = (
    ("diff --git", "file"),
    ("+++ ", "quiet"),
    ("--- ", "quiet"),
    ("index ", "quiet"),
    ("@@", "hunk"),
    ("+", "added"),
    ("-", "removed"),
)
