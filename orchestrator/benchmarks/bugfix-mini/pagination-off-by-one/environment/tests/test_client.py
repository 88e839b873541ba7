import unittest

from feed.api import ItemsApi
from feed.client import Client


class QuietFeed(unittest.TestCase):
    def test_all_items_newest_first(self):
        api = ItemsApi()
        for number in range(1, 6):
            api.add(f"item {number}")
        self.assertEqual([item["id"] for item in Client(api, page_size=3).iter_items()], [5, 4, 3, 2, 1])
        self.assertEqual([item["id"] for item in Client(api, page_size=3).first(2)], [5, 4])


if __name__ == "__main__":
    unittest.main()
