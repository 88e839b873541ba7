import unittest

from confkit.ini import IniError, parse
from confkit.listing import find, show


class Reading(unittest.TestCase):
    def test_values_and_lists(self):
        sections = parse("a = 1\n[s]\n; note\nb =\n  x\n  y = z\n[t]\n[s]\nc=\n")
        self.assertEqual(show(sections), ["[] a = 1", "[s] b = ", "[s] b = x", "[s] b = y = z", "[s] c = "])
        self.assertEqual(find(sections, "s", "b"), ["", "x", "y = z"])

    def test_mistakes_name_the_line(self):
        with self.assertRaisesRegex(IniError, "line 2: "):
            parse("a = 1\nb\n")


if __name__ == "__main__":
    unittest.main()
