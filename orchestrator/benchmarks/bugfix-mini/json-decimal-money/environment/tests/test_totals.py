import unittest

from invoices.load import read_invoice
from invoices.totals import totals


class Sample(unittest.TestCase):
    def test_the_nails(self):
        self.assertEqual(
            totals(read_invoice("samples/nails.json")),
            {"net": "24.20", "tax": {"7": "1.26", "19": "1.18"}, "total": "26.64"},
        )


if __name__ == "__main__":
    unittest.main()
