"""The database file and its one table."""

import sqlite3
from contextlib import closing
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS books (
    id INTEGER PRIMARY KEY,
    title TEXT NOT NULL,
    author TEXT NOT NULL,
    year INTEGER NOT NULL,
    hidden INTEGER NOT NULL DEFAULT 0
)
"""


def connect(path: str | Path) -> closing[sqlite3.Connection]:
    """A connection to close by a `with` statement."""
    db = sqlite3.connect(path)
    db.execute(SCHEMA)
    return closing(db)
