import unittest

from ratecache import TTLCache


class OneThread(unittest.TestCase):
    def test_a_value_is_loaded_once(self):
        cache = TTLCache(str.upper, ttl=600)
        self.assertEqual([cache.get("a"), cache.get("a"), cache.get("b")], ["A", "A", "B"])
        self.assertEqual(cache.stats(), {"hits": 1, "loads": 2})

    def test_invalidate(self):
        cache = TTLCache(str.upper, ttl=600)
        cache.get("a")
        cache.invalidate("a")
        cache.get("a")
        self.assertEqual(cache.stats(), {"hits": 0, "loads": 2})


if __name__ == "__main__":
    unittest.main()
