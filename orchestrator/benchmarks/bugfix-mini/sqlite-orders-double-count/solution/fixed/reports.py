"""The reports: each function takes a connection and returns a list of dicts."""

# Lines and payments are summed per order first: joined side by side, every line would meet every payment.
SUMS = """
WITH sums AS (
    SELECT o.id, o.customer_id, substr(o.placed_on, 1, 7) AS month,
           (SELECT COALESCE(SUM(l.quantity * l.price_cents), 0) FROM lines l WHERE l.order_id = o.id) AS ordered_cents,
           (SELECT COALESCE(SUM(p.cents), 0) FROM payments p WHERE p.order_id = o.id) AS paid_cents
      FROM orders o
     WHERE o.status <> 'cancelled'
)
"""

CUSTOMERS = f"""{SUMS}
SELECT c.name AS customer,
       COUNT(s.id) AS orders,
       COALESCE(SUM(s.ordered_cents), 0) AS ordered_cents,
       COALESCE(SUM(s.paid_cents), 0) AS paid_cents
  FROM customers c
  LEFT JOIN sums s ON s.customer_id = c.id
 GROUP BY c.id
 ORDER BY c.name, c.id
"""

MONTHS = f"""{SUMS}
SELECT month, COUNT(*) AS orders, SUM(ordered_cents) AS ordered_cents, SUM(paid_cents) AS paid_cents
  FROM sums
 GROUP BY month
 ORDER BY month
"""

ARTICLES = """
SELECT l.article AS article, SUM(l.quantity) AS pieces, SUM(l.quantity * l.price_cents) AS ordered_cents
  FROM lines l
  JOIN orders o ON o.id = l.order_id
 WHERE o.status <> 'cancelled'
 GROUP BY l.article
 ORDER BY ordered_cents DESC, l.article
"""


def customers(conn):
    return _with_open(conn.execute(CUSTOMERS))


def months(conn):
    return _with_open(conn.execute(MONTHS))


def articles(conn):
    return [dict(row) for row in conn.execute(ARTICLES)]


def _with_open(rows):
    return [dict(row) | {"open_cents": row["ordered_cents"] - row["paid_cents"]} for row in rows]
