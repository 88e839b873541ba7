"""Tables fit a screen without a number being cut, and are whole where nothing measures them."""

import pytest
from rich.cells import cell_len

from orchestrator.view.tables import Listing, Look, TableColumn, fitted, laid_out

ROWS = [
    {"name": "a-scenario-with-a-long-name-that-no-screen-has-room-for", "score": 0.123, "cost": "$1,234.56"},
    {"name": "漢字" * 20, "score": 1.0, "cost": "-"},
    {"name": "\x1b[31mred\u202e\nlines", "score": 0.5, "cost": "$2.00"},
]
TABLE = Listing(
    rows=ROWS,
    columns=[
        TableColumn(heading="name", words=lambda row: row["name"], is_text=True),
        TableColumn(heading="score", words=lambda row: (f"{row['score']:.3f}", Look.GOOD)),
        TableColumn(heading="cost", words=lambda row: row["cost"]),
        TableColumn(heading="again", words=lambda row: row["cost"]),
    ],
)


@pytest.mark.parametrize("width", [10, 30, 40, 80, 200])
def test_a_table_fits_any_width_that_its_numbers_fit(width: int) -> None:
    lines = list(laid_out(TABLE, width, is_coloured=False))
    assert all(line.isprintable() for line in lines)
    assert sum("$1,234.56" in line for line in lines) in {1, 2}, "no number is cut, and none is lost"
    if width >= 30:
        assert max(map(cell_len, lines)) <= width
    assert len(lines) % (1 + len(ROWS)) == 0


def test_without_a_width_everything_is_there_in_columns() -> None:
    head, first, second, third = laid_out(TABLE, None, is_coloured=False)
    assert first.startswith(ROWS[0]["name"])  # type: ignore[arg-type]
    assert third.startswith("\\x1b[31mred\\u202e\\nlines ")
    assert len({cell_len(line) for line in (head, first, second, third)}) == 1


def test_colours_take_no_place() -> None:
    plain, coloured = (list(laid_out(TABLE, 40, is_coloured=each)) for each in (False, True))
    assert [line.replace("\x1b[32m", "").replace("\x1b[1m", "").replace("\x1b[0m", "") for line in coloured] == plain


@pytest.mark.parametrize(
    ("text", "width", "shown"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("漢字漢", 4, "漢…"), ("ab", 0, "")]
)
def test_a_text_is_cut_at_a_cell(text: str, width: int, shown: str) -> None:
    assert fitted(text, width) == shown
