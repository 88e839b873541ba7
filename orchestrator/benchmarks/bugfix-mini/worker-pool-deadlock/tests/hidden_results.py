"""Hidden tests: no result is lost."""

from hidden_pool import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too


class Results(Case):
    def test_nothing_is_a_result(self):
        found = self.run_all(lambda: None, lambda: "", lambda: 0, lambda: None)
        self.assertEqual(found, [(0, None, None), (1, "", None), (2, 0, None), (3, None, None)])

    def test_an_exception_that_is_returned_is_a_value(self):
        returned = ValueError("fine")
        self.assertEqual(self.run_all(lambda: returned), [(0, returned, None)])

    def test_results_can_be_asked_for_again(self):
        pool = self.Pool()
        for number in range(3):
            pool.submit(str, number)
        first = pool.results()
        self.assertEqual([result.value for result in first], ["0", "1", "2"])
        self.assertEqual(pool.results(), first)
        first.clear()
        self.assertEqual(len(pool.results()), 3)


if __name__ == "__main__":
    main()
