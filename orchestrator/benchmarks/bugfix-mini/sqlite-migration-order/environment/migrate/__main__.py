import argparse
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from migrate import history
from migrate.files import MigrationError, find_migrations
from migrate.runner import apply_pending


def main() -> int:
    parser = argparse.ArgumentParser(prog="migrate")
    parser.add_argument("database")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--status", action="store_true")
    given = parser.parse_args()
    try:
        migrations = find_migrations(given.folder)
        with closing(sqlite3.connect(given.database)) as db:
            history.prepare(db)
            if given.status:
                applied = history.applied_versions(db)
                for migration in migrations:
                    print("x" if migration.version in applied else "-", migration.file)
                return 0
            for migration in apply_pending(db, migrations):
                print("applied", migration.file)
    except (MigrationError, OSError) as error:
        print(f"migrate: {error}", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
