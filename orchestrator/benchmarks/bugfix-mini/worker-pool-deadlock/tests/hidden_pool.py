"""A limit for each test (a deadlock ends the whole run, with status 1), and what worked before."""

import faulthandler
import os
import sys
import threading
import unittest

sys.path.insert(0, os.getcwd())
LIMIT = 4.0  # seconds; only a deadlock takes so long


class Case(unittest.TestCase):
    def setUp(self):
        from pool import Pool

        faulthandler.dump_traceback_later(LIMIT, exit=True)
        self.addCleanup(faulthandler.cancel_dump_traceback_later)
        self.Pool = Pool

    def run_all(self, *jobs, **options):
        """The results of functions without arguments, as (number, value, error)."""
        with self.Pool(**options) as pool:
            for job in jobs:
                pool.submit(job)
        return [(result.number, result.value, result.error) for result in pool.results()]


class Kept(Case):
    """Part of every file of tests."""

    def test_results_are_in_the_order_of_the_jobs(self):
        second_is_done = threading.Event()
        found = self.run_all(
            lambda: second_is_done.wait(2) and "first", lambda: second_is_done.set() or "second", workers=2
        )
        self.assertEqual(found, [(0, "first", None), (1, "second", None)])

    def test_arguments_and_numbers(self):
        pool = self.Pool(workers=1)
        self.assertEqual([pool.submit(pow, 2, 5), pool.submit(max, 3, 4, 5)], [0, 1])
        self.assertEqual([result.value for result in pool.results()], [32, 5])

    def test_jobs_run_at_the_same_time(self):
        barrier = threading.Barrier(3)
        found = self.run_all(*[lambda: barrier.wait(2) >= 0] * 3, workers=3)
        self.assertEqual([value for _, value, _ in found], [True] * 3)

    def test_threads_are_ended(self):
        before = set(threading.enumerate())
        self.run_all(lambda: 1, lambda: 2)
        self.assertEqual(set(threading.enumerate()) - before, set())

    def test_closed_is_closed(self):
        pool = self.Pool()
        pool.close()
        pool.close()
        with self.assertRaises(RuntimeError):
            pool.submit(print)
        self.assertEqual(pool.results(), [])

    def test_submit_waits_while_the_backlog_is_full(self):
        started, go_on = threading.Event(), threading.Event()
        pool = self.Pool(workers=1, backlog=2)
        pool.submit(lambda: started.set() or go_on.wait(2))
        started.wait(2)
        pool.submit(started.set)
        pool.submit(started.set)
        last = threading.Thread(target=pool.submit, args=(started.set,))
        last.start()
        last.join(0.1)
        waited = last.is_alive()
        go_on.set()
        last.join()
        pool.close()
        self.assertTrue(waited)

    def test_an_exception_in_the_body_passes_on(self):
        done = []
        with self.assertRaises(LookupError), self.Pool() as pool:
            pool.submit(done.append, 1)
            raise LookupError
        self.assertEqual(done, [1])


def main():
    print("passed" if unittest.main(exit=False).result.wasSuccessful() else "failed", flush=True)
    os._exit(0)  # threads of a broken pool must not keep the process
