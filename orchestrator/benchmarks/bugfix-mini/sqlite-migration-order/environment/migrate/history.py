"""What was applied to a database."""

import sqlite3


def prepare(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE IF NOT EXISTS schema_history (version INTEGER PRIMARY KEY, file TEXT NOT NULL)")


def applied_versions(db: sqlite3.Connection) -> set[int]:
    return {version for (version,) in db.execute("SELECT version FROM schema_history")}


def record(db: sqlite3.Connection, version: int, file: str) -> None:
    db.execute("INSERT INTO schema_history (version, file) VALUES (?, ?)", (version, file))
