import unittest

from app.merge import merge


class Rules(unittest.TestCase):
    def test_each_rule(self):
        base = {"a": 1, "b": {"c": 2, "d": 3}, "list": [1]}
        overlay = {"a": None, "b": {"c": 4}, "+list": [2], "+new": [5], "e": 6}
        self.assertEqual(merge(base, overlay), {"b": {"c": 4, "d": 3}, "list": [1, 2], "new": [5], "e": 6})


if __name__ == "__main__":
    unittest.main()
