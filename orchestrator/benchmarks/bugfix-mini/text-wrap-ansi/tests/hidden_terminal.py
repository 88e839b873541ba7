"""A terminal that knows enough of colour codes to say how each character of a line looks, and what worked before."""

import os
import re
import sys
import unicodedata
import unittest

sys.path.insert(0, os.getcwd())
CODE = re.compile(r"\x1b\[([0-9;]*)m")
SWITCHES = {1: "bold", 4: "underline", 7: "inverse"}
SWITCHED_OFF = {22: "bold", 24: "underline", 27: "inverse", 39: "colour", 49: "background"}


def plain(text):
    return CODE.sub("", text)


def cells(text):
    """The room a text without codes takes."""
    return sum(
        0 if unicodedata.category(each) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )


def apply(looks, numbers):
    """What is on after a code."""
    rest = [int(number or 0) for number in numbers.split(";")]
    while rest:
        number, *rest = rest
        if number == 0:
            looks = {}
        elif number in SWITCHES:
            looks = {**looks, SWITCHES[number]: True}
        elif number in SWITCHED_OFF:
            looks = {name: value for name, value in looks.items() if name != SWITCHED_OFF[number]}
        elif number in (38, 48):
            length = 2 if rest[0] == 5 else 4
            looks = {**looks, "colour" if number == 38 else "background": tuple(rest[:length])}
            rest = rest[length:]
        else:
            looks = {**looks, "colour" if number % 60 // 10 == 3 else "background": number}
    return looks


def shown(text):
    """The visible characters (no white space), each with how it looks; and what is on at the end."""
    looks, found, position = {}, [], 0
    while position < len(text):
        code = CODE.match(text, position)
        if code:
            looks = apply(looks, code[1])
            position = code.end()
            continue
        if not text[position].isspace():
            found.append((text[position], looks))
        position += 1
    return found, looks


class Case(unittest.TestCase):
    def setUp(self):
        import wraptext

        self.wrap, self.width = wraptext.wrap, wraptext.width

    def wraps(self, text, width, expected):
        """What is visible of the wrapped text are these lines."""
        lines = self.wrap(text, width)
        self.assertEqual([plain(line) for line in lines], expected)
        for line in lines:
            self.assertLessEqual(cells(plain(line)), width)
            self.assertNotIn("\x1b", plain(line))
        return lines


class Kept(Case):
    """Part of every file of tests."""

    def test_words(self):
        self.assertEqual(self.wrap("the quick\t brown  fox ", 9), ["the quick", "brown fox"])
        self.assertEqual(self.wrap("  the quick brown fox", 10), ["the quick", "brown fox"])
        self.assertEqual(self.wrap("abcd efgh", 4), ["abcd", "efgh"])

    def test_long_words(self):
        self.assertEqual(self.wrap("a bcdefghijk l", 4), ["a", "bcde", "fghi", "jk l"])
        self.assertEqual(self.wrap("abcdefgh", 4), ["abcd", "efgh"])

    def test_newlines(self):
        self.assertEqual(self.wrap("a\n\n \nb c\n", 2), ["a", "", "", "b", "c", ""])
        self.assertEqual(self.wrap("", 5), [""])

    def test_width_of_plain_text(self):
        self.assertEqual([self.width(text) for text in ("", "plain text", "äöü")], [0, 10, 3])


def main():
    print("passed" if unittest.main(exit=False).result.wasSuccessful() else "failed")
