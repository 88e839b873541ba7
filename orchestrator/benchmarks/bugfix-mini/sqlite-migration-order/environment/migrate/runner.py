"""Applies what is pending."""

import sqlite3
from collections.abc import Iterator

from migrate import history
from migrate.files import Migration, MigrationError


def pending(db: sqlite3.Connection, migrations: list[Migration]) -> list[Migration]:
    newest = max(history.applied_versions(db), default=0)
    return [migration for migration in migrations if migration.version > newest]


def apply_pending(db: sqlite3.Connection, migrations: list[Migration]) -> Iterator[Migration]:
    """Applies the pending migrations and yields each one when it is applied."""
    for migration in pending(db, migrations):
        try:
            db.executescript(migration.path.read_text(encoding="utf-8"))
            history.record(db, migration.version, migration.file)
            db.commit()
        except sqlite3.Error as error:
            raise MigrationError(f"{migration.file}: {error}") from error
        yield migration
