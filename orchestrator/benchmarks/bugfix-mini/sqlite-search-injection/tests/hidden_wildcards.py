"""Hidden tests: no character of a text to look for has a special meaning."""

from hidden_books import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too


class Wildcards(Case):
    def test_percent(self):
        self.assertEqual(self.found(title="100%"), [5])
        self.assertEqual(self.found(title="%"), [5, 12])
        self.assertEqual(self.found(author="ann%marie"), [12])

    def test_underscore(self):
        self.assertEqual(self.found(title="snake_"), [6])
        self.assertEqual(self.found(author="Ann_Marie"), [11])
        self.assertEqual(self.found(title="_"), [6])

    def test_backslash(self):
        self.assertEqual(self.found(title="C:\\auto"), [8])
        self.assertEqual(self.found(title="\\%"), [12])
        self.assertEqual(self.found(title="\\"), [12, 8])

    def test_signs_that_are_special_elsewhere(self):
        for text, expected in {
            "!": [10],
            "^": [11],
            "[over]": [11],
            "*": [11],
            "?": [11],
            "[a-z]": [],
            "!%": [],
        }.items():
            self.assertEqual(self.found(title=text), expected, text)

    def test_command_line(self):
        self.assertEqual(self.shelf("--title", "100%")[1], ["5\t100% Wool\tInes Okafor\t2015"])


if __name__ == "__main__":
    main()
