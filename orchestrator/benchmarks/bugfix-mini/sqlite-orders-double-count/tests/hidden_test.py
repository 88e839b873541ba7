import importlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.getcwd())

# A schema of our own, so that what the tests see does not depend on what became of the file in the project.
SCHEMA = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers (id),
    placed_on TEXT NOT NULL, status TEXT NOT NULL);
CREATE TABLE lines (id INTEGER PRIMARY KEY, order_id INTEGER NOT NULL REFERENCES orders (id), article TEXT NOT NULL,
    quantity INTEGER NOT NULL, price_cents INTEGER NOT NULL);
CREATE TABLE payments (id INTEGER PRIMARY KEY, order_id INTEGER NOT NULL REFERENCES orders (id),
    cents INTEGER NOT NULL);
"""


class ReportCase(unittest.TestCase):
    def setUp(self):
        self.reports = importlib.import_module("shop.reports")
        self.conn = sqlite3.connect(":memory:")
        self.conn.row_factory = sqlite3.Row
        self.addCleanup(self.conn.close)
        self.conn.executescript(SCHEMA)

    def customer(self, name):
        return self.conn.execute("INSERT INTO customers (name) VALUES (?)", (name,)).lastrowid

    def order(self, customer, placed_on, status="sent", lines=(), payments=()):
        values = (customer, placed_on, status)
        order = self.conn.execute(
            "INSERT INTO orders (customer_id, placed_on, status) VALUES (?, ?, ?)", values
        ).lastrowid
        for article, quantity, cents in lines:
            self.conn.execute(
                "INSERT INTO lines (order_id, article, quantity, price_cents) VALUES (?, ?, ?, ?)",
                (order, article, quantity, cents),
            )
        for cents in payments:
            self.conn.execute("INSERT INTO payments (order_id, cents) VALUES (?, ?)", (order, cents))

    def rows(self, report, first):
        keys = (first, "orders", "ordered_cents", "paid_cents", "open_cents")
        rows = getattr(self.reports, report)(self.conn)
        for row in rows:
            self.assertEqual(set(row), set(keys))
            self.assertTrue(all(type(row[key]) is int for key in keys[1:]), row)
        return [tuple(row[key] for key in keys) for row in rows]

    def fill(self):
        ada, bo, cy = self.customer("Ada"), self.customer("Bo"), self.customer("Cy")
        self.order(ada, "2024-04-29", lines=[("a", 1, 1000), ("b", 1, 1000), ("c", 3, 500)], payments=[1500, 1500])
        self.order(ada, "2024-05-03", "new", lines=[("d", 2, 1000)])
        self.order(bo, "2024-05-04", lines=[("c", 3, 500)], payments=[1500])
        self.order(cy, "2024-06-06", "cancelled", lines=[("a", 1, 1000), ("b", 1, 1)], payments=[1000, 7])


class Customers(ReportCase):
    def test_lines_and_payments_do_not_multiply(self):
        self.fill()
        self.assertEqual(
            self.rows("customers", "customer"),
            [("Ada", 2, 5500, 3000, 2500), ("Bo", 1, 1500, 1500, 0), ("Cy", 0, 0, 0, 0)],
        )

    def test_equal_amounts_all_count(self):
        ada = self.customer("Ada")
        for _ in range(3):
            self.order(ada, "2024-05-01", lines=[("a", 2, 500)] * 3, payments=[100] * 4)
        self.assertEqual(self.rows("customers", "customer"), [("Ada", 3, 9000, 1200, 7800)])

    def test_orders_without_lines_or_payments(self):
        ada, bo = self.customer("Ada"), self.customer("Bo")
        self.order(ada, "2024-05-01")
        self.order(ada, "2024-05-02", payments=[200, 300])
        self.order(bo, "2024-05-02", lines=[("a", 1, 5), ("b", 1, 6)])
        self.assertEqual(self.rows("customers", "customer"), [("Ada", 2, 0, 500, -500), ("Bo", 1, 11, 0, 11)])

    def test_refunds_and_overpayments(self):
        ada = self.customer("Ada")
        self.order(ada, "2024-05-01", lines=[("a", 1, 900), ("b", 1, 100)], payments=[1200, -150, -150])
        self.assertEqual(self.rows("customers", "customer"), [("Ada", 1, 1000, 900, 100)])
        self.order(ada, "2024-05-02", payments=[300])
        self.assertEqual(self.rows("customers", "customer"), [("Ada", 2, 1000, 1200, -200)])

    def test_two_customers_of_one_name_by_name(self):
        for name, cents in (("Zoe", 1), ("Ada", 2), ("Zoe", 3)):
            self.order(self.customer(name), "2024-05-01", lines=[("a", 1, cents)], payments=[cents, cents])
        rows = self.rows("customers", "customer")
        self.assertEqual([row[0] for row in rows], ["Ada", "Zoe", "Zoe"])
        self.assertEqual(sorted(rows), [("Ada", 1, 2, 4, -2), ("Zoe", 1, 1, 2, -1), ("Zoe", 1, 3, 6, -3)])


class Months(ReportCase):
    def test_months_have_the_same_sums(self):
        self.fill()
        self.assertEqual(
            self.rows("months", "month"), [("2024-04", 1, 3500, 3000, 500), ("2024-05", 2, 3500, 1500, 2000)]
        )

    def test_many_of_everything(self):
        ada, bo = self.customer("Ada"), self.customer("Bo")
        for day in range(1, 29):
            self.order(ada, f"2024-02-{day:02}", lines=[("a", 1, 10)] * (day % 4), payments=[5] * (day % 3))
            self.order(bo, f"2023-02-{day:02}", lines=[("a", 1, 10)] * 2, payments=[5] * 2)
        self.assertEqual(self.rows("months", "month"), [("2023-02", 28, 560, 280, 280), ("2024-02", 28, 420, 140, 280)])

    def test_no_orders_no_months(self):
        self.customer("Ada")
        self.assertEqual(self.rows("months", "month"), [])


class Rest(ReportCase):
    def test_articles_stay_right(self):
        self.fill()
        rows = [(row["article"], row["pieces"], row["ordered_cents"]) for row in self.reports.articles(self.conn)]
        self.assertEqual(rows, [("c", 6, 3000), ("d", 2, 2000), ("a", 1, 1000), ("b", 1, 1000)])

    def test_reports_leave_nothing_behind(self):
        self.fill()
        self.conn.commit()
        for report in ("customers", "months", "articles"):
            getattr(self.reports, report)(self.conn)
        names = self.conn.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name")
        self.assertEqual([row[0] for row in names], ["customers", "lines", "orders", "payments"])
        self.assertFalse(self.conn.in_transaction)

    def test_the_command_on_a_new_sample(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "shop.db")
            subprocess.run([sys.executable, "-m", "shop.seed", path], check=True)
            done = subprocess.run(
                [sys.executable, "-m", "shop", "customers", "--db", path], capture_output=True, text=True, check=True
            )
        self.assertEqual(
            [line.split() for line in done.stdout.splitlines()],
            [
                ["customer", "orders", "ordered", "paid", "open"],
                ["Ada", "Byron", "2", "55.00", "30.00", "25.00"],
                ["Bo", "Lund", "1", "15.00", "15.00", "0.00"],
                ["Cy", "Moss", "0", "0.00", "0.00", "0.00"],
            ],
        )


if __name__ == "__main__":
    unittest.main(verbosity=2)
