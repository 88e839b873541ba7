"""Hidden tests: codes take no room, and are not cut."""

import subprocess
import sys

from hidden_terminal import Case, Kept, main, plain  # noqa: F401 - the tests of Kept are run here, too

RED, BOLD, OFF = "\x1b[31m", "\x1b[1m", "\x1b[0m"


class Codes(Case):
    def test_width(self):
        texts = [f"{RED}red{OFF}", f"a{BOLD}{RED}b\x1b[m", "\x1b[38;5;196mx\x1b[;m", RED, "[31m"]
        self.assertEqual([self.width(text) for text in texts], [3, 2, 1, 0, 4])

    def test_as_many_words_as_fit(self):
        text = f"the {RED}quick{OFF} {BOLD}brown{OFF} fox {RED}jumps{OFF} over"
        self.wraps(text, 9, ["the quick", "brown fox", "jumps", "over"])
        self.wraps(text, 40, ["the quick brown fox jumps over"])

    def test_exactly_full(self):
        self.wraps(f"{RED}abcd{OFF} {BOLD}efgh{OFF}", 4, ["abcd", "efgh"])
        self.wraps(f"a{RED}b{OFF} c{BOLD}d{OFF}", 5, ["ab cd"])

    def test_codes_in_a_long_word(self):
        self.wraps(f"x ab{RED}cd{BOLD}ef{OFF}gh\x1b[38;5;196mij{OFF}k", 4, ["x", "abcd", "efgh", "ijk"])
        self.wraps("\x1b[31m".join("abcdefgh"), 3, ["abc", "def", "gh"])

    def test_codes_that_stand_alone(self):
        self.wraps(f"a {RED} b {OFF} {BOLD} c", 5, ["a b c"])
        self.wraps(f"ab {RED} cd {OFF}", 2, ["ab", "cd"])
        self.wraps(f"{RED} ab cd {OFF}\nef", 5, ["ab cd", "ef"])

    def test_a_line_of_nothing_but_codes(self):
        self.wraps(f"a\n{RED}\n{OFF}b", 5, ["a", "", "b"])

    def test_many_widths(self):
        words = "it is a long way to the end of this line unbelievably".split()
        coloured = " ".join(f"{RED if number % 2 else BOLD}{word}{OFF}" for number, word in enumerate(words))
        for width in range(2, 60):
            self.assertEqual([plain(line) for line in self.wrap(coloured, width)], self.wrap(" ".join(words), width))

    def test_command_line(self):
        ran = subprocess.run(
            [sys.executable, "-B", "-m", "wraptext", "--width", "9"],
            input=f"the {RED}quick{OFF} brown\nfox\n",
            capture_output=True,
            text=True,
        )
        self.assertEqual(plain(ran.stdout), "the quick\nbrown\nfox\n")


if __name__ == "__main__":
    main()
