"""Finds books."""

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True)
class Book:
    id: int
    title: str
    author: str
    year: int


def search(
    db: sqlite3.Connection,
    title: str | None = None,
    author: str | None = None,
    sort: str = "title",
    limit: int = 20,
) -> list[Book]:
    """The books with `title` in their title and `author` in their author, without regard to case."""
    conditions = ["hidden = 0"]
    if title is not None:
        conditions.append(f"title LIKE '%{title}%'")
    if author is not None:
        conditions.append(f"author LIKE '%{author}%'")
    where = " AND ".join(conditions)
    rows = db.execute(f"SELECT id, title, author, year FROM books WHERE {where} ORDER BY {sort}, id LIMIT {limit}")
    return [Book(*row) for row in rows]
