"""A shelf of the test's own, and what worked before."""

import contextlib
import csv
import io
import os
import runpy
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, os.getcwd())

BOOKS = [
    (1, "The Third Policeman", "Flann O'Brien", 1967, 0),
    (2, "At Swim-Two-Birds", "Flann O'Brien", 1939, 0),
    (3, 'Say "Yes" Twice; Please', "Ines Okafor", 2003, 0),
    (4, "100 Ways to Bake Bread", "Marta Lind", 2009, 0),
    (5, "100% Wool", "Ines Okafor", 2015, 0),
    (6, "snake_case for Poets", "Jo Park", 2018, 0),
    (7, "Snakes, Cases", "Jo Park", 2011, 0),
    (8, "C:\\autoexec", "R. Dale", 1994, 0),
    (9, "Notes to self", "House", 2021, 1),
    (10, "Bread Again!", "Marta Lind", 2009, 0),
    (11, "Under ^ and [over] * what?", "Ann_Marie", 1980, 0),
    (12, "A\\% Solution", "Ann%Marie", 1981, 0),
]


class Case(unittest.TestCase):
    def setUp(self):
        from shelf.db import connect
        from shelf.load import load
        from shelf.search import search

        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.database, books = Path(scratch.name, "test.db"), Path(scratch.name, "books.csv")
        with books.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("id", "title", "author", "year", "hidden"), *BOOKS])
        self.assertEqual(load(books, self.database), len(BOOKS))
        self.search = search
        self.db = self.enterContext(connect(self.database))

    def found(self, *given, **named):
        return [book.id for book in self.search(self.db, *given, **named)]

    def shelf(self, *options):
        """Exit status, lines of output, standard error of `python3 -m shelf search`."""
        out, err = io.StringIO(), io.StringIO()
        sys.argv = ["shelf", "search", "--db", str(self.database), *options]
        status = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_module("shelf", run_name="__main__", alter_sys=True)
            except SystemExit as ended:
                if isinstance(ended.code, str):  # as Python itself does
                    print(ended.code, file=err)
                status = 1 if isinstance(ended.code, str) else ended.code or 0
        return status, out.getvalue().splitlines(), err.getvalue()


class Kept(Case):
    """Part of every file of tests."""

    def test_without_regard_to_case(self):
        self.assertEqual(self.found(title="BREAD"), [4, 10])
        self.assertEqual(self.found(author="flann o"), [2, 1])

    def test_both_filters(self):
        self.assertEqual(self.found("bread", "lind", "year", 1), [4])
        self.assertEqual(self.found(title="bread", author="park"), [])

    def test_no_filter_shows_all_but_the_hidden(self):
        self.assertEqual(sorted(self.found()), [number for number, *_, hidden in BOOKS if not hidden])
        self.assertEqual(self.found(title="", author="", limit=3), self.found(limit=3))

    def test_order(self):
        self.assertEqual(self.found(sort="year", limit=4), [2, 1, 11, 12])
        self.assertEqual(self.found(title="bread", sort="author"), [4, 10])

    def test_command_line(self):
        expected = ["4\t100 Ways to Bake Bread\tMarta Lind\t2009", "10\tBread Again!\tMarta Lind\t2009"]
        self.assertEqual(self.shelf("--title", "bread", "--sort", "year"), (0, expected, ""))


def main():
    print("passed" if unittest.main(exit=False).result.wasSuccessful() else "failed")
