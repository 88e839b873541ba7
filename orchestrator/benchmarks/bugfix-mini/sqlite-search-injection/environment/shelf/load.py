"""Fills the table from a CSV file."""

import csv
from pathlib import Path

from shelf.db import connect


def load(csv_file: str | Path, database: str | Path) -> int:
    """Adds the books of `csv_file` (columns id, title, author, year, hidden); returns how many."""
    with open(csv_file, encoding="utf-8", newline="") as file:
        books = [
            (int(row["id"]), row["title"], row["author"], int(row["year"]), int(row["hidden"]))
            for row in csv.DictReader(file)
        ]
    with connect(database) as db, db:
        db.executemany("INSERT INTO books (id, title, author, year, hidden) VALUES (?, ?, ?, ?, ?)", books)
    return len(books)
