import sqlite3
import tempfile
import unittest
from contextlib import closing
from pathlib import Path

from migrate import history
from migrate.files import find_migrations
from migrate.runner import apply_pending


class Migrate(unittest.TestCase):
    def test_every_migration_is_applied_once(self):
        with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(":memory:")) as db:
            Path(folder, "1-a.sql").write_text("CREATE TABLE a (x);")
            Path(folder, "2-b.sql").write_text("CREATE TABLE b (x); INSERT INTO a VALUES (1);")
            history.prepare(db)
            for expected in (["1-a.sql", "2-b.sql"], []):
                done = [migration.file for migration in apply_pending(db, find_migrations(Path(folder)))]
                self.assertEqual(done, expected)
            self.assertEqual(history.applied_versions(db), {1, 2})


if __name__ == "__main__":
    unittest.main()
