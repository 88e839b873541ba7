import unittest

from wraptext import width, wrap


class Wrap(unittest.TestCase):
    def test_words_go_on_the_next_line(self):
        self.assertEqual(wrap("the quick  brown fox", 9), ["the quick", "brown fox"])

    def test_a_long_word_is_broken(self):
        self.assertEqual(wrap("a bcdefgh i", 4), ["a", "bcde", "fgh", "i"])
        self.assertEqual(wrap("a bcdefg h", 4), ["a", "bcde", "fg h"])

    def test_empty_lines_stay(self):
        self.assertEqual(wrap("a\n\nb\n", 10), ["a", "", "b", ""])

    def test_width(self):
        self.assertEqual(width("plain"), 5)


if __name__ == "__main__":
    unittest.main()
