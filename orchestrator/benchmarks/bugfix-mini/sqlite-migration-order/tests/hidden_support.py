"""Runs the migrator on databases and folders of the test's own."""

import contextlib
import io
import os
import runpy
import sqlite3
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, os.getcwd())


class Case(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.database = Path(scratch.name, "test.db")
        self.folder = Path(scratch.name, "migrations")
        self.folder.mkdir()

    def put(self, **files):
        """Writes migrations; `m7_x="…"` is the file 7-x.sql."""
        for name, content in files.items():
            number, rest = name[1:].split("_", 1)
            (self.folder / f"{number}-{rest}.sql").write_text(content)

    def migrate(self, *options):
        """Exit status, lines of output, lines of standard error."""
        out, err = io.StringIO(), io.StringIO()
        sys.argv = ["migrate", str(self.database), str(self.folder), *options]
        status = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_module("migrate", run_name="__main__", alter_sys=True)
            except SystemExit as ended:
                status = ended.code or 0
        return status, out.getvalue().splitlines(), err.getvalue().splitlines()

    def rows(self, query):
        with contextlib.closing(sqlite3.connect(self.database)) as db:
            return db.execute(query).fetchall()

    @property
    def tables(self):
        return {name for (name,) in self.rows("SELECT name FROM sqlite_schema WHERE type = 'table'")} - {
            "schema_history"
        }

    @property
    def history(self):
        return self.rows("SELECT version, file FROM schema_history ORDER BY version")


class Kept(Case):
    """What worked before; part of every file of tests."""

    def test_applied_once_and_reported(self):
        self.put(m1_a="CREATE TABLE a (x);", m2_b="CREATE TABLE b (x); INSERT INTO a VALUES (1);")
        self.assertEqual(self.migrate(), (0, ["applied 1-a.sql", "applied 2-b.sql"], []))
        self.assertEqual(self.migrate(), (0, [], []))
        self.assertEqual(self.rows("SELECT x FROM a"), [(1,)])
        self.assertEqual(self.history, [(1, "1-a.sql"), (2, "2-b.sql")])

    def test_status(self):
        self.put(m1_a="CREATE TABLE a (x);")
        self.migrate()
        self.put(m2_b="CREATE TABLE b (x);")
        self.assertEqual(self.migrate("--status")[:2], (0, ["x 1-a.sql", "- 2-b.sql"]))
        self.assertEqual(self.tables, {"a"})

    def test_one_number_twice_is_refused(self):
        self.put(m1_a="CREATE TABLE a (x);", m2_b="CREATE TABLE b (x);", m02_c="CREATE TABLE c (x);")
        status, output, errors = self.migrate()
        self.assertEqual((status, output, self.tables), (1, [], set()))
        self.assertTrue(errors[-1].startswith("migrate: "))

    def test_other_files_are_ignored(self):
        self.put(m1_a="CREATE TABLE a (x);")
        for name in ("README.txt", "2-b.sql.orig", "draft.sql"):
            (self.folder / name).write_text("nonsense")
        self.assertEqual(self.migrate(), (0, ["applied 1-a.sql"], []))


def main():
    print("passed" if unittest.main(exit=False).result.wasSuccessful() else "failed")
