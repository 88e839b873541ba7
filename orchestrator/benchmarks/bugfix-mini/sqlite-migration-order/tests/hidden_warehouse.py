"""Hidden test: inventory.db has all the migrations, and its rows. Only reads it."""

import sqlite3
import unittest
from contextlib import closing
from pathlib import Path

FILES = [
    "1-items.sql",
    "2-movements.sql",
    "3-shelves.sql",
    "9-item-notes.sql",
    "10-suppliers.sql",
    "11-movement-days.sql",
]


class Warehouse(unittest.TestCase):
    def setUp(self):
        self.db = self.enterContext(
            closing(sqlite3.connect(f"{Path('inventory.db').absolute().as_uri()}?mode=ro", uri=True))
        )

    def test_every_migration_is_in_the_history(self):
        history = self.db.execute("SELECT version, file FROM schema_history ORDER BY version").fetchall()
        self.assertEqual(history, [(int(file.split("-")[0]), file) for file in FILES])

    def test_the_rows_are_there(self):
        items = self.db.execute("SELECT id, name, stock, shelf, note, supplier FROM items ORDER BY id").fetchall()
        self.assertEqual(
            items,
            [
                (1, "bolt M6", 380, "A-1", "", 1),
                (2, "nut M6", 400, "A-1", "", 1),
                (3, "washer; large", 80, "A-1", "", 1),
                (4, "bracket", 12, "A-1", "heavy; two people", 1),
            ],
        )
        movements = self.db.execute("SELECT item, pieces, day FROM movements ORDER BY id").fetchall()
        self.assertEqual(
            movements, [(1, 500, None), (2, 450, None), (1, -120, None), (3, 80, None), (4, 12, None), (2, -50, None)]
        )
        self.assertEqual(self.db.execute("SELECT name, shelf FROM suppliers").fetchall(), [("unknown", "A-1")])


if __name__ == "__main__":
    print("passed" if unittest.main(exit=False).result.wasSuccessful() else "failed")
