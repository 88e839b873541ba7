import importlib
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


class Rounding(InvoiceCase):
    def net(self, *lines):
        net, _, total = self.total(*lines)
        self.assertEqual(net, total)
        return net

    def test_halves_of_a_line_go_up(self):
        for price, net in (
            ("1.005", "1.01"),
            ("0.125", "0.13"),
            ("2.675", "2.68"),
            ("0.005", "0.01"),
            ("1.115", "1.12"),
        ):
            with self.subTest(price):
                self.assertEqual(self.net(line(1, price, 0)), net)
                self.assertEqual(self.net(line(1, f'"{price}"', 0)), net)
                self.assertEqual(self.net(line(-1, price, 0)), "-" + net)

    def test_just_below_a_half_goes_down(self):
        self.assertEqual(self.net(line(1, "1.004999", 0)), "1.00")
        self.assertEqual(self.net(line("0.999999", "0.005", 0)), "0.00")

    def test_zero_has_no_sign(self):
        self.assertEqual(self.total(line(-1, "0.001", 19)), ("0.00", [("19", "0.00")], "0.00"))
        self.assertEqual(self.total(line(-1, "0.01", 1)), ("-0.01", [("1", "0.00")], "-0.01"))
        self.assertEqual(self.total(line(-1, "0.00", 1)), ("0.00", [("1", "0.00")], "0.00"))

    def test_fractions_of_pieces(self):
        self.assertEqual(self.net(line("2.5", "3.13", 0)), "7.83")
        self.assertEqual(self.net(line("0.333333", "3", 0)), "1.00")
        self.assertEqual(self.net(line("1.1", "1.15", 0, 0)), "1.27")

    def test_discounts_are_rounded_with_the_line(self):
        self.assertEqual(self.net(line(1, "0.10", 0, 5)), "0.10")
        self.assertEqual(self.net(line(1, "0.30", 0, 15)), "0.26")
        self.assertEqual(self.net(line(1, "33.50", 0, "0.1")), "33.47")

    def test_halves_of_a_tax_go_up(self):
        self.assertEqual(self.total(line(1, "0.50", 19)), ("0.50", [("19", "0.10")], "0.60"))
        self.assertEqual(self.total(line(-1, "0.50", 19)), ("-0.50", [("19", "-0.10")], "-0.60"))
        self.assertEqual(self.total(line(1, "0.10", "5.0")), ("0.10", [("5.0", "0.01")], "0.11"))
        self.assertEqual(self.total(line(1, "1.50", "7")), ("1.50", [("7", "0.11")], "1.61"))

    def test_exact_with_many_digits(self):
        self.assertEqual(self.net(line("1.000001", "123456789012345.000005", 0)), "123456912469134.01")
        self.assertEqual(self.net(line(1, "123456789012345.005", 0)), "123456789012345.01")
        self.assertEqual(self.net(line("999999.999999", "1000000.000001", 0, "0.000001")), "999999990000.00")

    def test_lines_command(self):
        printed = self.command("lines", line(1, "1.005", 19, text="Washer"), line(-1, "2.675", 7, text="Bolt"))
        self.assertEqual([row.split() for row in printed.splitlines()], [["1.01", "Washer"], ["-2.68", "Bolt"]])

    def test_the_example_of_the_ticket(self):
        self.assertEqual(self.total(line(1, "1.005", 19)), ("1.01", [("19", "0.19")], "1.20"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
