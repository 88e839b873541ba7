import unittest

from pool import Pool


class Results(unittest.TestCase):
    def test_in_the_order_of_the_jobs(self):
        with Pool(workers=2) as pool:
            for number in range(5):
                self.assertEqual(pool.submit(pow, number, 2), number)
        self.assertEqual([result.value for result in pool.results()], [0, 1, 4, 9, 16])

    def test_no_jobs_after_the_end(self):
        pool = Pool()
        pool.close()
        with self.assertRaises(RuntimeError):
            pool.submit(print)


if __name__ == "__main__":
    unittest.main()
