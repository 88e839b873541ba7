"""The reports: each function takes a connection and returns a list of dicts."""

CUSTOMERS = """
SELECT c.name AS customer,
       COUNT(o.id) AS orders,
       COALESCE(SUM(l.quantity * l.price_cents), 0) AS ordered_cents,
       COALESCE(SUM(p.cents), 0) AS paid_cents
  FROM customers c
  LEFT JOIN orders o ON o.customer_id = c.id AND o.status <> 'cancelled'
  LEFT JOIN lines l ON l.order_id = o.id
  LEFT JOIN payments p ON p.order_id = o.id
 GROUP BY c.id
 ORDER BY c.name, c.id
"""

MONTHS = """
SELECT substr(o.placed_on, 1, 7) AS month,
       COUNT(o.id) AS orders,
       COALESCE(SUM(l.quantity * l.price_cents), 0) AS ordered_cents,
       COALESCE(SUM(p.cents), 0) AS paid_cents
  FROM orders o
  LEFT JOIN lines l ON l.order_id = o.id
  LEFT JOIN payments p ON p.order_id = o.id
 WHERE o.status <> 'cancelled'
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
