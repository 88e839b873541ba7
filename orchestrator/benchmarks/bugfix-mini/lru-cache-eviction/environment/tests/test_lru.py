import unittest

from cache import CachedLoader, LruCache


class Lru(unittest.TestCase):
    def test_the_oldest_goes_first(self):
        cache = LruCache(3)
        for key in "abcd":
            cache.put(key, "x")
        self.assertEqual(cache.keys(), ["b", "c", "d"])
        self.assertEqual((cache.get("a"), cache.get("d")), (None, "x"))

    def test_removing(self):
        cache = LruCache(10)
        cache.put("a", "four")
        cache.remove("a")
        cache.remove("b")
        self.assertEqual((len(cache), cache.weight), (0, 0))

    def test_a_loader_loads_once(self):
        asked = []
        load = CachedLoader(LruCache(10), lambda key: asked.append(key) or key * 2)
        self.assertEqual([load("a"), load("a")], ["aa", "aa"])
        self.assertEqual(asked, ["a"])


if __name__ == "__main__":
    unittest.main()
