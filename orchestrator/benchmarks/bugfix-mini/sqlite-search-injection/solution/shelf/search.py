"""Finds books."""

import sqlite3
from dataclasses import dataclass


SORTS = ("title", "author", "year")


@dataclass(frozen=True)
class Book:
    id: int
    title: str
    author: str
    year: int


def escaped(text: str) -> str:
    """`text` as a pattern for `LIKE … ESCAPE '!'` that stands for itself."""
    for special in "!%_":
        text = text.replace(special, f"!{special}")
    return text


def search(
    db: sqlite3.Connection,
    title: str | None = None,
    author: str | None = None,
    sort: str = "title",
    limit: int = 20,
) -> list[Book]:
    """The books with `title` in their title and `author` in their author, without regard to case.

    Raises ValueError if `sort` is not one of SORTS.
    """
    if sort not in SORTS:
        raise ValueError(f"cannot sort by {sort!r}: expected one of {', '.join(SORTS)}")
    conditions, values = ["hidden = 0"], []
    for column, text in (("title", title), ("author", author)):
        if text is not None:
            conditions.append(f"{column} LIKE ? ESCAPE '!'")
            values.append(f"%{escaped(text)}%")
    where = " AND ".join(conditions)
    query = f"SELECT id, title, author, year FROM books WHERE {where} ORDER BY {sort}, id LIMIT ?"
    rows = db.execute(query, [*values, limit])
    return [Book(*row) for row in rows]
