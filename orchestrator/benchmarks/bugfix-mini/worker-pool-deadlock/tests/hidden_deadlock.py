"""Hidden tests: whatever the jobs do, `submit` and `close` return."""

import hashlib
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from hidden_pool import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too


def fail(error=ValueError):
    raise error("no")


class Deadlock(Case):
    def test_a_job_that_raises(self):
        found = self.run_all(lambda: "a", fail, lambda: "c")
        self.assertEqual(
            [(number, value, type(error)) for number, value, error in found],
            [
                (0, "a", type(None)),
                (1, None, ValueError),
                (2, "c", type(None)),
            ],
        )
        self.assertEqual(found[1][2].args, ("no",))

    def test_more_failures_than_threads_and_places(self):
        found = self.run_all(*[fail] * 20, lambda: "last", workers=2, backlog=2)
        self.assertEqual([number for number, _, _ in found], list(range(21)))
        self.assertTrue(all(isinstance(error, ValueError) for _, _, error in found[:20]))
        self.assertEqual(found[20], (20, "last", None))

    def test_other_exceptions(self):
        kinds = [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, AssertionError]
        found = self.run_all(*[lambda kind=kind: fail(kind) for kind in kinds], lambda: "last", workers=1)
        self.assertEqual([type(error) for _, _, error in found], [*kinds, type(None)])

    def test_many_results_nobody_has_asked_for(self):
        found = self.run_all(*[lambda number=number: number + 1 for number in range(200)], workers=2, backlog=3)
        self.assertEqual(found, [(number, number + 1, None) for number in range(200)])

    def test_the_threads_end_after_failures(self):
        before = set(threading.enumerate())
        pool = self.Pool(workers=3)
        for _ in range(5):
            pool.submit(fail)
        pool.close()
        self.assertEqual(set(threading.enumerate()) - before, set())
        self.assertEqual(len(pool.results()), 5)


class Program(Case):
    def setUp(self):
        pass  # the limit is that of the process it starts

    def test_a_missing_file(self):
        with TemporaryDirectory() as folder:
            names = [str(Path(folder, name)) for name in ("one", "missing", "two")]
            Path(names[0]).write_text("one\n")
            Path(names[2]).write_text("two\n")
            ran = subprocess.run(
                [sys.executable, "-B", "checksum.py", *names], capture_output=True, text=True, timeout=10
            )
            expected = [f"{hashlib.sha256(Path(name).read_bytes()).hexdigest()}  {name}" for name in names[::2]]
        self.assertEqual(ran.stdout.splitlines(), expected)
        self.assertEqual(ran.returncode, 1)
        self.assertIn(names[1], ran.stderr)


if __name__ == "__main__":
    main()
