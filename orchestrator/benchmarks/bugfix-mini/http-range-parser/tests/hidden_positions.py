"""Hidden tests: which bytes of the file a range is."""

from hidden_ranges import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too


class Positions(Case):
    def test_the_last_bytes(self):
        self.assertEqual(self.parts("bytes=-100"), [(0, 99)])
        self.assertEqual(self.parts("bytes=-101"), [(0, 99)])
        self.assertEqual(self.parts("bytes=-99999999999999999999"), [(0, 99)])
        self.assertEqual(self.parts("bytes=-1"), [(99, 99)])

    def test_the_end_of_the_file(self):
        self.assertEqual(self.parts("bytes=0-99"), [(0, 99)])
        self.assertEqual(self.parts("bytes=0-100"), [(0, 99)])
        self.assertEqual(self.parts("bytes=99-5000"), [(99, 99)])
        self.assertEqual(self.parts("bytes=99-"), [(99, 99)])

    def test_none_is_in_the_file(self):
        self.unsatisfiable(
            "bytes=100-", "bytes=100-100", "bytes=101-", "bytes=500-600", "bytes=-0", "bytes=100-,-0,200-300"
        )

    def test_some_are_in_the_file(self):
        self.assertEqual(self.parts("bytes=0-1,100-200"), [(0, 1)])
        self.assertEqual(self.parts("bytes=-0,5-6,500-,90-200"), [(5, 6), (90, 99)])

    def test_an_empty_file(self):
        self.unsatisfiable("bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0", size=0)
        self.assertEqual(self.respond(None, 0).status, 200)

    def test_a_file_of_one_byte(self):
        self.assertEqual(self.parts("bytes=0-,-1,-2,0-5", size=1), [(0, 0)] * 4)
        self.unsatisfiable("bytes=1-", size=1)

    def test_command_line(self):
        self.assertEqual(self.command("bytes=-200", 100), "206 bytes 0-99/100\n")
        self.assertEqual(self.command("bytes=100-", 100), "416 bytes */100\n")


if __name__ == "__main__":
    main()
