import unittest

from shelf.db import connect
from shelf.search import search


class Search(unittest.TestCase):
    def setUp(self):
        self.db = self.enterContext(connect(":memory:"))
        self.db.execute("INSERT INTO books VALUES (1, 'Bread', 'Lind', 2009, 0), (2, 'bread again', 'Park', 2013, 0)")

    def found(self, **given):
        return [book.id for book in search(self.db, **given)]

    def test_title(self):
        self.assertEqual(self.found(title="BREAD"), [1, 2])

    def test_both(self):
        self.assertEqual(self.found(title="bread", author="park"), [2])

    def test_sort_and_limit(self):
        self.db.execute("INSERT INTO books VALUES (3, 'Old Bread', 'Dale', 1950, 0)")
        self.assertEqual(self.found(sort="year", limit=2), [3, 1])


if __name__ == "__main__":
    unittest.main()
