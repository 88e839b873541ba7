import unittest

from shop import db, reports


class SimpleOrders(unittest.TestCase):
    def test_one_line_and_one_payment(self):
        conn = db.create(":memory:")
        self.addCleanup(conn.close)
        conn.executescript("""
            INSERT INTO customers VALUES (1, 'Ada'), (2, 'Bo');
            INSERT INTO orders VALUES (1, 1, '2024-05-01', 'sent'), (2, 1, '2024-05-02', 'cancelled');
            INSERT INTO lines VALUES (1, 1, 'cup', 2, 500), (2, 2, 'cup', 9, 500);
            INSERT INTO payments VALUES (1, 1, 400);
        """)
        self.assertEqual(
            reports.customers(conn),
            [
                {"customer": "Ada", "orders": 1, "ordered_cents": 1000, "paid_cents": 400, "open_cents": 600},
                {"customer": "Bo", "orders": 0, "ordered_cents": 0, "paid_cents": 0, "open_cents": 0},
            ],
        )


if __name__ == "__main__":
    unittest.main()
