"""A stand-in for the server of the feed, in memory.

What the server guarantees:

- `list` returns {"items": [...], "total": number of all items of any kind, "next": a cursor or None}, newest first.
- A page has at most `limit` items and never more than MAX_LIMIT. A larger limit is no error.
- `offset` counts from the newest item at the time of the request.
- `cursor`, the `next` of an earlier answer, continues behind that page, whatever was added or deleted since. It says
  nothing about its content: don't take it apart. With a cursor, `offset` is ignored.
- `next` is None if there is nothing behind the page.
- `kind` is applied after the page was cut out: a page may have fewer items than `limit`, or none, and yet a `next`.
- Any request may fail with Busy; it can be repeated.
"""

MAX_LIMIT = 50


class Busy(Exception):
    """Try again."""


class ItemsApi:
    def __init__(self):
        self._items = []
        self._last_id = 0
        self.requests = 0

    def add(self, text, kind="news"):
        self._last_id += 1
        self._items.insert(0, {"id": self._last_id, "kind": kind, "text": text})
        return self._last_id

    def delete(self, item_id):
        self._items = [item for item in self._items if item["id"] != item_id]

    def list(self, *, limit=20, offset=0, cursor=None, kind=None):
        self.requests += 1
        limit = min(limit, MAX_LIMIT)
        if cursor is None:
            rest = self._items[offset:]
        else:
            rest = [item for item in self._items if item["id"] < int(cursor, 36)]
        page = rest[:limit]
        return {
            "items": [dict(item) for item in page if kind in (None, item["kind"])],
            "total": len(self._items),
            "next": _base36(page[-1]["id"]) if len(rest) > limit else None,
        }


def _base36(number):
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits
