import importlib
import os
import sys
import unittest

sys.path.insert(0, os.getcwd())

CASES = {
    # As before.
    "Home": "home",
    "How to: start (again)": "how-to-start-again",
    "  --Release 2.0--  ": "release-2-0",
    "C++": "c",
    # Letters of every script.
    "über uns": "über-uns",
    "Ber uns": "ber-uns",
    "日本語": "日本語",
    "Привет, мир!": "привет-мир",
    "Οδυσσεύς": "οδυσσεύσ",
    "हिन्दी भाषा": "हिन्दी-भाषा",
    "Straße": "strasse",
    # Composed and decomposed, and compatibility forms.
    "Cafe\u0301": "caf\u00e9",
    "Caf\u00e9": "caf\u00e9",
    "\ufb01le № 5": "file-no-5",
    "Ｆｕｌｌ　ｗｉｄｔｈ": "full-width",
    "x²": "x2",
    "Ⅷ": "viii",
    # Nothing left.
    "!?": "page",
    "": "page",
    "🎉": "page",
    "🎉 Party 🎉": "party",
    "snake_case": "snake-case",
    "a\u00a0b\u2014c": "a-b-c",
}


class Slugs(unittest.TestCase):
    def test_every_case(self):
        slugify = importlib.import_module("wiki.slug").slugify
        for title, slug in CASES.items():
            with self.subTest(title):
                self.assertEqual(slugify(title), slug)

    def test_a_slug_of_a_slug_is_itself(self):
        slugify = importlib.import_module("wiki.slug").slugify
        for title in CASES:
            with self.subTest(title):
                self.assertEqual(slugify(slugify(title)), slugify(title))


if __name__ == "__main__":
    unittest.main(verbosity=2)
