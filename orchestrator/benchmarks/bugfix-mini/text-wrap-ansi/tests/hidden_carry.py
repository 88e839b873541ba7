"""Hidden tests: each line stands on its own, and every character looks as it does in the text."""

from hidden_terminal import Case, Kept, main, shown  # noqa: F401 - the tests of Kept are run here, too

RED, BOLD, UNDERLINE, OFF = "\x1b[31m", "\x1b[1m", "\x1b[4m", "\x1b[0m"


class Carry(Case):
    def alone(self, text, width):
        """Checks the lines of a text, and that there are at least two."""
        lines, found = self.wrap(text, width), []
        for line in lines:
            characters, at_the_end = shown(line)
            self.assertEqual(at_the_end, {}, repr(line))
            found.extend(characters)
        self.assertEqual(found, shown(text)[0])
        self.assertGreater(len(lines), 1)

    def test_one_colour(self):
        self.alone(f"{RED}red and still red{OFF} and not", 7)
        self.alone(f"some {RED}red without an end and more", 9)

    def test_several_at_once(self):
        self.alone(f"{RED}red {BOLD}bold and red {UNDERLINE}all of them{OFF} nothing at all", 6)
        self.alone("\x1b[1;4;31mall of them \x1b[22mno longer bold \x1b[39mno colour any more\x1b[m nothing here", 8)

    def test_colours_with_parameters(self):
        self.alone("\x1b[38;5;0mblack words here \x1b[48;2;0;128;0mon green ground\x1b[49m and on none", 7)

    def test_off_as_part_of_a_code(self):
        self.alone(f"{RED}red words \x1b[0;1mbold words only \x1b[;4munderlined only\x1b[m nothing on", 6)

    def test_in_a_long_word(self):
        self.alone(f"ab{RED}cdefgh{BOLD}ijklmnop{OFF}qrst", 3)

    def test_a_colour_that_changes_between_words(self):
        self.alone(f"abcd{RED} efgh{OFF} ijkl {BOLD}mnop {OFF}qrst", 4)

    def test_across_newlines(self):
        self.alone(f"{RED}red\n\nstill red\n{OFF}not red", 20)

    def test_plain_text_has_no_codes(self):
        self.assertEqual(self.wrap("ab cd\nef", 2), ["ab", "cd", "ef"])

    def test_every_width(self):
        text = f"It {RED}was a{BOLD} bright{OFF} cold {UNDERLINE}day in \x1b[32mApril, and\x1b[24m the\x1b[m clocks"
        for width in range(4, 30):
            self.alone(text, width)


if __name__ == "__main__":
    main()
