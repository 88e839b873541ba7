"""Opens and creates databases of the shop."""

import sqlite3
from pathlib import Path

SCHEMA = Path(__file__).with_name("schema.sql")


def connect(path):
    """Opens a database; rows can be read by column name."""
    conn = sqlite3.connect(path)
    conn.row_factory = sqlite3.Row
    return conn


def create(path):
    """Opens a new database that has the tables and nothing in them."""
    conn = connect(path)
    conn.executescript(SCHEMA.read_text(encoding="utf-8"))
    return conn
