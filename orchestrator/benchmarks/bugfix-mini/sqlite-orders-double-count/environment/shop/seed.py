"""Makes the sample database: python3 -m shop.seed FILE."""

import sys

from . import db

CUSTOMERS = [(1, "Ada Byron"), (2, "Bo Lund"), (3, "Cy Moss")]
ORDERS = [
    (1, 1, "2024-04-29", "sent"),
    (2, 1, "2024-05-03", "new"),
    (3, 2, "2024-05-04", "sent"),
    (4, 3, "2024-05-06", "cancelled"),
]
LINES = [
    (1, "teapot", 1, 1000),
    (1, "kettle", 1, 1000),
    (1, "cup", 3, 500),
    (2, "tray", 2, 1000),
    (3, "cup", 3, 500),
    (4, "teapot", 1, 1000),
]
PAYMENTS = [(1, 1500), (1, 1500), (3, 1500), (4, 1000)]


def main(path):
    conn = db.create(path)
    with conn:
        conn.executemany("INSERT INTO customers (id, name) VALUES (?, ?)", CUSTOMERS)
        conn.executemany("INSERT INTO orders (id, customer_id, placed_on, status) VALUES (?, ?, ?, ?)", ORDERS)
        conn.executemany("INSERT INTO lines (order_id, article, quantity, price_cents) VALUES (?, ?, ?, ?)", LINES)
        conn.executemany("INSERT INTO payments (order_id, cents) VALUES (?, ?)", PAYMENTS)
    conn.close()


if __name__ == "__main__":
    main(sys.argv[1])
