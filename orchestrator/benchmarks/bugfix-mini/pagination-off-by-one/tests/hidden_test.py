import importlib
import os
import sys
import unittest

sys.path.insert(0, os.getcwd())


class Server:
    """Another server with the guarantees of feed/api.py; notes what it is asked and lets a test act between pages."""

    def __init__(self, count, max_limit=50, kinds=("news",)):
        self.items = [{"id": n, "kind": kinds[n % len(kinds)], "text": f"item {n}"} for n in range(count, 0, -1)]
        self.last_id = count
        self.max_limit = max_limit
        self.cursors = {}
        self.requests = []
        self.before_request = lambda number: None
        self.failures = iter(())

    def add(self, kind="news"):
        self.last_id += 1
        self.items.insert(0, {"id": self.last_id, "kind": kind, "text": "new"})

    def delete(self, *ids):
        self.items = [item for item in self.items if item["id"] not in ids]

    def list(self, *, limit=20, offset=0, cursor=None, kind=None):
        self.requests.append((limit, offset, cursor, kind))
        self.before_request(len(self.requests))
        failure = next(self.failures, None)
        if failure is not None:
            raise failure
        limit = min(limit, self.max_limit)
        rest = self.items[offset:] if cursor is None else [i for i in self.items if i["id"] < self.cursors[cursor]]
        page = rest[:limit]
        following = None
        if len(rest) > limit:
            following = f"=/{len(self.cursors)}?&"
            self.cursors[following] = page[-1]["id"]
        items = [dict(item) for item in page if kind in (None, item["kind"])]
        return {"items": items, "total": len(self.items), "next": following}


class ClientCase(unittest.TestCase):
    def setUp(self):
        self.Client = importlib.import_module("feed.client").Client
        self.Busy = importlib.import_module("feed.api").Busy
        self.mirror = importlib.import_module("feed.mirror").mirror

    def walk(self, server, page_size, kind=None):
        return [item["id"] for item in self.Client(server, page_size=page_size).iter_items(kind)]

    def down(self, first, last=1):
        return list(range(first, last - 1, -1))


class Walking(ClientCase):
    def test_every_count_and_page_size(self):
        for count in (0, 1, 2, 5, 6, 7, 12, 13):
            for page_size in (1, 2, 3, 6, 12, 13, 100):
                with self.subTest(count=count, page_size=page_size):
                    self.assertEqual(self.walk(Server(count), page_size), self.down(count))

    def test_one_more_than_full_pages(self):
        self.assertEqual(self.walk(Server(41), 20), self.down(41))

    def test_pages_larger_than_the_server_gives(self):
        self.assertEqual(self.walk(Server(170), 100), self.down(170))
        self.assertEqual(self.walk(Server(20, max_limit=7), 20), self.down(20))

    def test_pages_that_have_none_of_a_kind(self):
        server = Server(30, kinds=("rare", *["news"] * 9))
        self.assertEqual(self.walk(server, 3, "rare"), [30, 20, 10])
        self.assertEqual(self.walk(server, 3, "none"), [])
        self.assertEqual(self.walk(server, 4, "news"), [n for n in self.down(30) if n % 10])

    def test_whole_items_are_given(self):
        self.assertEqual(list(self.Client(Server(1)).iter_items()), [{"id": 1, "kind": "news", "text": "item 1"}])


class Changes(ClientCase):
    def test_items_added_between_pages(self):
        server = Server(10)
        server.before_request = lambda number: number > 1 and server.add()
        self.assertEqual(self.walk(server, 3), self.down(10))

    def test_items_deleted_between_pages(self):
        server = Server(10)
        server.before_request = lambda number: number == 2 and server.delete(10, 9, 8)
        self.assertEqual(self.walk(server, 3), self.down(10))

    def test_an_item_deleted_before_its_page(self):
        server = Server(10)
        server.before_request = lambda number: number == 2 and server.delete(8, 5, 1)
        self.assertEqual(self.walk(server, 3), [10, 9, 8, 7, 6, 4, 3, 2])

    def test_everything_behind_the_page_deleted(self):
        server = Server(10)
        server.before_request = lambda number: number == 2 and server.delete(*range(1, 8))
        self.assertEqual(self.walk(server, 3), [10, 9, 8])

    def test_additions_and_deletions(self):
        server = Server(40)

        def change(number):
            if number > 1:
                server.add()
                server.add()
                server.delete(41 - number)

        server.before_request = change
        self.assertEqual(self.walk(server, 5), self.down(40))

    def test_the_mirror_keeps_what_exists(self):
        server = Server(10)
        client = self.Client(server, page_size=3)
        copy = {}
        self.assertEqual(self.mirror(client, copy), (10, 0))
        server.requests.clear()
        server.before_request = lambda number: number == 2 and (server.delete(10), server.delete(9))
        self.assertEqual(self.mirror(client, copy), (0, 0))
        server.before_request = lambda number: None
        server.add()
        self.assertEqual(self.mirror(client, copy), (1, 2))
        self.assertEqual(sorted(copy), [1, 2, 3, 4, 5, 6, 7, 8, 11])

    def test_two_walks_at_once(self):
        server = Server(9)
        client = self.Client(server, page_size=2)
        pairs = [(a["id"], b["id"]) for a, b in zip(client.iter_items(), client.iter_items(), strict=True)]
        self.assertEqual(pairs, [(n, n) for n in self.down(9)])


class Frugality(ClientCase):
    def first(self, server, count, page_size, kind=None):
        return [item["id"] for item in self.Client(server, page_size=page_size).first(count, kind)]

    def test_first(self):
        for count, requests in ((0, 0), (1, 1), (5, 1), (6, 2), (10, 2), (11, 3), (12, 3), (99, 3)):
            with self.subTest(count):
                server = Server(12)
                self.assertEqual(self.first(server, count, 5), self.down(12)[:count])
                self.assertEqual(len(server.requests), requests)

    def test_first_of_a_kind(self):
        server = Server(30, kinds=("rare", *["news"] * 9))
        self.assertEqual(self.first(server, 2, 5, "rare"), [30, 20])
        self.assertEqual(len(server.requests), 3)

    def test_no_request_before_an_item_is_wanted(self):
        server = Server(9)
        walk = self.Client(server, page_size=3).iter_items()
        self.assertEqual(server.requests, [])
        for _ in range(3):
            next(walk)
        self.assertEqual(len(server.requests), 1)

    def test_no_request_after_the_last_page(self):
        for count, requests in ((0, 1), (3, 1), (6, 2), (7, 3)):
            with self.subTest(count):
                server = Server(count)
                self.assertEqual(self.walk(server, 3), self.down(count))
                self.assertEqual(len(server.requests), requests)

    def test_busy_pages_are_asked_for_again(self):
        server = Server(7)
        server.failures = iter([self.Busy(), self.Busy(), None, self.Busy(), None, self.Busy(), self.Busy(), None])
        self.assertEqual(self.walk(server, 3), self.down(7))
        self.assertEqual(len(server.requests), 8)

    def test_busy_for_good(self):
        server = Server(7)
        server.failures = iter([None, *[self.Busy()] * 3])
        walk = self.Client(server, page_size=3).iter_items()
        self.assertEqual([next(walk)["id"] for _ in range(3)], [7, 6, 5])
        with self.assertRaises(self.Busy):
            next(walk)
        self.assertEqual(len(server.requests), 4)

    def test_other_errors_are_not_hidden(self):
        server = Server(7)
        server.failures = iter([ValueError("no")])
        with self.assertRaises(ValueError):
            self.walk(server, 3)
        self.assertEqual(len(server.requests), 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
