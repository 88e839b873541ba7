"""Hidden tests: nothing the user types becomes SQL."""

from hidden_books import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too


class Quotes(Case):
    def test_apostrophe(self):
        self.assertEqual(self.found(author="O'Brien"), [2, 1])
        self.assertEqual(self.found(title="don't"), [])

    def test_other_quotes_and_semicolons(self):
        self.assertEqual(self.found(title='"Yes"'), [3])
        self.assertEqual(self.found(title="Twice; P"), [3])

    def test_hidden_books_stay_hidden(self):
        for text in ("zzz' OR hidden = 1 --", "' OR '1'='1", "zzz' UNION SELECT id, title, author, year FROM books --"):
            self.assertEqual(self.found(title=text), [])
            self.assertEqual(self.found(author=text), [])
        self.assertEqual(self.found(title="notes"), [])

    def test_sort_is_one_of_three(self):
        for sort in ("hidden", "id", "title DESC", "year; DROP TABLE books", "(SELECT 1)", "", "title, id LIMIT 1 --"):
            with self.assertRaises(ValueError, msg=sort):
                self.search(self.db, sort=sort)
        self.assertEqual(self.found(title="bread", sort="title"), [4, 10])

    def test_command_line(self):
        status, output, _ = self.shelf("--author", "O'Brien", "--sort", "year")
        self.assertEqual((status, output[0]), (0, "2\tAt Swim-Two-Birds\tFlann O'Brien\t1939"))
        status, output, errors = self.shelf("--sort", "hidden")
        self.assertEqual((status, output), (2, []))
        self.assertTrue(errors.strip())
        self.assertNotIn("Traceback", errors)


if __name__ == "__main__":
    main()
