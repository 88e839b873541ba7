import importlib
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.getcwd())

JUMP = """
import time
real, offset = time.time, [0.0]
time.time = lambda: real() + offset[0]
from ratecache import TTLCache
calls = []
cache = TTLCache(calls.append, ttl=600)
cache.get("a")
for offset[0] in (3600.0, -3600.0):
    cache.get("a")
print(len(calls))
short = TTLCache(calls.append, ttl=0.0)
short.get("b")
short.get("b")
print(len(calls))
"""


class Expiry(unittest.TestCase):
    def setUp(self):
        self.now = 1000.0
        self.calls = []
        self.loading_takes = 0.0
        self.cache = importlib.import_module("ratecache").TTLCache(self.load, ttl=10, clock=lambda: self.now)

    def load(self, key):
        self.calls.append(key)
        self.now += self.loading_takes
        return f"{key}{len(self.calls)}"

    def test_fresh_until_the_ttl_is_reached(self):
        self.assertEqual(self.cache.get("a"), "a1")
        self.now += 9.5
        self.assertEqual(self.cache.get("a"), "a1")
        self.now += 0.25
        self.assertEqual(self.cache.get("a"), "a1")
        self.now += 0.25
        self.assertEqual(self.cache.get("a"), "a2")
        self.now += 9.5
        self.assertEqual(self.cache.get("a"), "a2")
        self.assertEqual(self.cache.stats(), {"hits": 3, "loads": 2})

    def test_age_counts_from_the_end_of_the_load(self):
        self.loading_takes = 8.0
        self.cache.get("a")
        self.now += 9.0
        self.assertEqual(self.cache.get("a"), "a1")
        self.now += 1.0
        self.assertEqual(self.cache.get("a"), "a2")

    def test_a_load_longer_than_the_ttl(self):
        self.loading_takes = 25.0
        self.assertEqual(self.cache.get("a"), "a1")
        self.assertEqual(self.cache.get("a"), "a1")

    def test_using_an_entry_does_not_renew_it(self):
        self.cache.get("a")
        for _ in range(9):
            self.now += 1
            self.cache.get("a")
        self.now += 1
        self.assertEqual(self.cache.get("a"), "a2")

    def test_keys_expire_on_their_own(self):
        self.cache.get("a")
        self.now += 6
        self.cache.get("b")
        self.now += 6
        self.assertEqual([self.cache.get("b"), self.cache.get("a")], ["b2", "a3"])

    def test_the_default_clock_does_not_follow_the_time_of_day(self):
        done = subprocess.run([sys.executable, "-c", JUMP], capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout.split(), ["1", "3"])

    def test_none_is_a_value(self):
        calls = []
        cache = importlib.import_module("ratecache").TTLCache(calls.append, ttl=10, clock=lambda: self.now)
        self.assertEqual([cache.get("a"), cache.get("a")], [None, None])
        self.assertEqual(calls, ["a"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
