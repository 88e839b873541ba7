"""Hidden tests: which headers are ignored, and which are not."""

from hidden_ranges import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too


class Syntax(Case):
    def test_numbers_are_digits(self):
        self.ignored(
            "bytes=+1-2",
            "bytes=1-+2",
            "bytes=1_0-20",
            "bytes=-1_0",
            "bytes=1 - 2",
            "bytes=1- 2",
            "bytes=٣-٥",
            "bytes=１-２",
        )
        self.ignored("bytes=--1", "bytes=1--2", "bytes=0x1-2", "bytes=²-³", "bytes=5")

    def test_the_last_is_not_before_the_first(self):
        self.ignored("bytes=5-2", "bytes=0-1,5-2", "bytes=5-2,0-1", "bytes=200-150")
        self.assertEqual(self.parts("bytes=5-5"), [(5, 5)])

    def test_the_unit_in_any_case(self):
        self.assertEqual(self.parts("Bytes=0-1"), [(0, 1)])
        self.assertEqual(self.parts("BYTES=0-1,5-6"), [(0, 1), (5, 6)])
        self.ignored("byte=0-1", "bytess=0-1", "bytes =0-1", "=0-1", "bytes:0-1")

    def test_blanks_and_empty_places(self):
        self.assertEqual(self.parts("bytes=0-1,,5-6,"), [(0, 1), (5, 6)])
        self.assertEqual(self.parts("bytes=,0-1 , ,\t"), [(0, 1)])
        self.assertEqual(self.parts(" \tbytes= 0-1 "), [(0, 1)])
        self.ignored("bytes=,", "bytes= , ,", "bytes=0-1;5-6", "bytes=0-1 5-6", "bytes=0-1\u00a0", "bytes=0-1\n,5-6")

    def test_empty_places_are_no_parts(self):
        self.assertEqual(len(self.parts("bytes=0-0,,1-1,,2-2,,3-3,,4-4,,")), 5)
        self.ignored("bytes=0-0,,1-1,,2-2,,3-3,,4-4,,5-5")

    def test_the_rest_of_the_header_is_looked_at(self):
        self.ignored("bytes=0-1=2-3", "bytes==0-1", "bytes=bytes=0-1")

    def test_command_line(self):
        self.assertEqual(self.command("Bytes=0-1", 100), "206 bytes 0-1/100\n")
        self.assertEqual(self.command("bytes=5-2", 100), "200\n")


if __name__ == "__main__":
    main()
