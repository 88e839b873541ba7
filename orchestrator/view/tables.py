"""Tables of any length, in every output format: values for programs, words for people.

Why not the library that draws other tables: laying out ten thousand rows takes it seconds, and a row here is a line of
a screen, whose width in cells is known, or a line of a pipe, where nothing is cut.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rich.cells import cell_len, set_cell_size

from orchestrator.core.printable import printable
from orchestrator.view.console import Page, print_record, put
from orchestrator.view.formats import Format, Record

#: Cells of a text that a narrow screen leaves.
NARROWEST: Final = 14
_GAP: Final = "  "
_RESET: Final = "\x1b[0m"


class Look(StrEnum):
    """How words look on a terminal with colours: the codes of ECMA-48 for it."""

    PLAIN = ""
    HEAD = "1"
    FAINT = "2"
    GOOD = "32"
    PARTLY = "33"
    BAD = "31"
    BROKEN = "1;35"


#: Words, or words with a look.
Words = str | tuple[str, Look]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """A column for people: its heading, and its words in a row. A text is on the left, and may be cut on a screen."""

    heading: str
    words: Callable[[Record], Words]
    is_text: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A table: `rows` of values by the same names, for programs, and the `columns` that people see of them.

    `names` are those names, where there may be no row. The first column says what a row is about: it is repeated where
    the others are too many for a screen.
    """

    rows: Sequence[Record]
    columns: Sequence[TableColumn]
    names: Sequence[str] = ()


def print_listing(listing: Listing, output: Format) -> None:
    """Print a table: a record for each row, or the table as a file of its format, or lines for people."""
    if output.tabulate is not None:
        names = [*(listing.names or (listing.rows or [{}])[0])]
        headings = [each.heading for each in listing.columns] if output.has_words else names
        rows = (
            [plain(each.words(row)) for each in listing.columns] if output.has_words else [*row.values()]
            for row in listing.rows
        )
        put(output.tabulate(headings, rows))
    elif output.is_for_programs:
        for row in listing.rows:
            print_record(row, output)
    else:
        page = Page(0)
        window = page.window
        lines = laid_out(listing, window.width if page.is_terminal else None, is_coloured=window.is_coloured)
        put("".join(f"{line}\n" for line in lines))


def print_lines(lines: Iterable[Words]) -> None:
    """Print lines for people, in colour where the terminal has any."""
    is_coloured = Page(0).window.is_coloured
    for words in lines:
        text, look = _cell(words)
        put(f"{styled(text, look) if is_coloured else text}\n")


def laid_out(listing: Listing, width: int | None, *, is_coloured: bool) -> Iterator[str]:
    """Lay a table out in so many cells, or in as many as it takes. Numbers are never cut.

    Where the numbers are too many for the width, the columns that do not fit follow in a table of their own.
    """
    cells = [[_cell(each.words(row)) for row in listing.rows] for each in listing.columns]
    widths = [
        max([cell_len(each.heading), *(width_of(words) for words, _ in column)])
        for each, column in zip(listing.columns, cells, strict=True)
    ]
    texts = [number for number, each in enumerate(listing.columns) if each.is_text]
    if width is not None:
        while texts and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
            widest = max(texts, key=widths.__getitem__)
            if widths[widest] <= NARROWEST:
                break
            widths[widest] -= 1
    for shown in _blocks(widths, width):
        fits = [(widths[each], listing.columns[each].is_text) for each in shown]
        yield _line([(listing.columns[each].heading, Look.HEAD) for each in shown], fits, is_coloured=is_coloured)
        for row in range(len(listing.rows)):
            yield _line([cells[each][row] for each in shown], fits, is_coloured=is_coloured)


def _blocks(widths: Sequence[int], width: int | None) -> Iterator[Sequence[int]]:
    """The columns of each table that fits: the first one, and as many others as there is room for."""
    shown, used = [0], widths[0]
    for column in range(1, len(widths)):
        needed = len(_GAP) + widths[column]
        if width is not None and used + needed > width and len(shown) > 1:
            yield shown
            shown, used = [0], widths[0]
        shown.append(column)
        used += needed
    yield shown


def _line(cells: Sequence[tuple[str, Look]], fits: Sequence[tuple[int, bool]], *, is_coloured: bool) -> str:
    """A line of a table; of each cell its width, and true for a text, which is on the left, and cut if need be."""
    pieces = []
    for (words, look), (width, is_text) in zip(cells, fits, strict=True):
        text = fitted(words, width)
        gap = " " * (width - width_of(text))
        text = styled(text, look) if is_coloured else text
        pieces.append(f"{text}{gap}" if is_text else f"{gap}{text}")
    return _GAP.join(pieces).rstrip()


def _cell(words: Words) -> tuple[str, Look]:
    text, look = words if isinstance(words, tuple) else (words, Look.PLAIN)
    return printable(text), look


def plain(words: Words) -> str:
    """Words without their look."""
    return words[0] if isinstance(words, tuple) else words


def styled(text: str, look: Look) -> str:
    """A text as it looks on a terminal with colours."""
    return f"\x1b[{look}m{text}{_RESET}" if look else text


def width_of(text: str) -> int:
    """The cells that a printable text takes on a screen."""
    return len(text) if text.isascii() else cell_len(text)


def fitted(text: str, width: int) -> str:
    """A printable text in at most `width` cells; `…` is where more was."""
    if width_of(text) <= width:
        return text
    if width < 1:
        return ""
    return f"{text[: width - 1] if text.isascii() else set_cell_size(text, width - 1).rstrip()}…"
