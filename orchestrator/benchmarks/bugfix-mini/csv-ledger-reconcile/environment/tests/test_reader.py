import unittest
from datetime import date
from pathlib import Path

from ledger.money import parse_cents
from ledger.reader import read_bank, read_books

SAMPLES = Path(__file__).parent.parent / "samples"


class Reader(unittest.TestCase):
    def test_bank(self):
        first = read_bank(SAMPLES / "bank.csv")[0]
        self.assertEqual((first.date, first.cents, first.reference), (date(2024, 5, 2), 120000, "INV-1001"))

    def test_books(self):
        self.assertEqual(
            [entry.cents for entry in read_books(SAMPLES / "books.csv")], [120000, -4500, 10000, 2400, 1820]
        )

    def test_amounts(self):
        self.assertEqual([parse_cents(text) for text in ("0.05", "(1,234.50)", "-3.00")], [5, -123450, -300])


if __name__ == "__main__":
    unittest.main()
