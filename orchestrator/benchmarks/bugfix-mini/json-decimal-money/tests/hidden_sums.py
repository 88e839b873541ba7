import importlib
import json
import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.getcwd())


def line(quantity, price, tax="19", discount=None, text="x"):
    """A line as JSON text, so that the numbers are written exactly as given."""
    extra = "" if discount is None else f', "discount": {discount}'
    return f'{{"text": "{text}", "quantity": {quantity}, "price": {price}, "tax": {tax}{extra}}}'


class InvoiceCase(unittest.TestCase):
    def setUp(self):
        self.load = importlib.import_module("invoices.load")
        self.model = importlib.import_module("invoices.model")
        self.totals = importlib.import_module("invoices.totals").totals
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "invoice.json")

    def write(self, *lines):
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(f'{{"number": "1", "lines": [{", ".join(lines)}]}}')

    def total(self, *lines):
        self.write(*lines)
        result = self.totals(self.load.read_invoice(self.path))
        self.assertEqual(set(result), {"net", "tax", "total"})
        return result["net"], list(result["tax"].items()), result["total"]

    def command(self, name, *lines):
        self.write(*lines)
        arguments = [sys.executable, "-m", "invoices", name, self.path]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


class Sums(InvoiceCase):
    def test_net_adds_rounded_amounts(self):
        self.assertEqual(self.total(*[line(1, "0.334")] * 3), ("0.99", [("19", "0.19")], "1.18"))
        self.assertEqual(self.total(*[line(1, "0.336")] * 3), ("1.02", [("19", "0.19")], "1.21"))

    def test_tax_is_rounded_once_for_each_rate(self):
        self.assertEqual(self.total(*[line(1, "0.10")] * 7), ("0.70", [("19", "0.13")], "0.83"))
        self.assertEqual(
            self.total(*[line(1, "0.10"), line(1, "0.04", 7)] * 5), ("0.70", [("7", "0.01"), ("19", "0.10")], "0.81")
        )

    def test_rates_from_the_lowest_to_the_highest(self):
        self.assertEqual(
            self.total(line(1, 1, 19), line(1, 1, "5.5"), line(1, 1, 0), line(1, 1, 100)),
            ("4.00", [("0", "0.00"), ("5.5", "0.06"), ("19", "0.19"), ("100", "1.00")], "5.25"),
        )

    def test_equal_rates_are_one(self):
        self.assertEqual(
            self.total(line(1, "0.05", "7.0"), line(1, "0.05", 7), line(1, "0.05", '"7.00"')),
            ("0.15", [("7.0", "0.01")], "0.16"),
        )

    def test_discounts(self):
        self.assertEqual(self.total(line(3, "9.99", 19, 15)), ("25.47", [("19", "4.84")], "30.31"))
        self.assertEqual(self.total(line(1, "10", 19, 100)), ("0.00", [("19", "0.00")], "0.00"))
        self.assertEqual(self.total(line(1, "0.20", 0, "2.5")), ("0.20", [("0", "0.00")], "0.20"))

    def test_large_amounts(self):
        self.assertEqual(
            self.total(line(1, "999999999999999.99", 7), line(1, "0.01", 7)),
            ("1000000000000000.00", [("7", "70000000000000.00")], "1070000000000000.00"),
        )

    def test_many_small_amounts(self):
        self.assertEqual(self.total(*[line(1, "0.07", 0)] * 1000), ("70.00", [("0", "0.00")], "70.00"))

    def test_a_credit_note(self):
        self.assertEqual(
            self.total(line(-2, "3.10"), line(1, "1.20", 7)), ("-5.00", [("7", "0.08"), ("19", "-1.18")], "-6.10")
        )

    def test_the_command(self):
        self.assertEqual(
            json.loads(self.command("total", *[line(1, "0.334")] * 3)),
            {"net": "0.99", "tax": {"19": "0.19"}, "total": "1.18"},
        )


class BadFiles(InvoiceCase):
    def test_bad_lines(self):
        for bad in (
            '{"price": 1, "tax": 1}',
            '{"quantity": 1, "tax": 1}',
            '{"quantity": 1, "price": 1}',
            line("true", 1),
            line(1, '"abc"'),
            line(1, "NaN"),
            line(1, 1, "Infinity"),
            line(1, 1, 1, '"NaN"'),
            line(1, '""'),
        ):
            with self.subTest(bad):
                self.write(line(1, 1), bad)
                with self.assertRaises(self.model.InvoiceError):
                    self.load.read_invoice(self.path)

    def test_no_lines(self):
        self.write()
        with self.assertRaises(self.model.InvoiceError):
            self.load.read_invoice(self.path)


if __name__ == "__main__":
    unittest.main(verbosity=2)
