import importlib
import os
import sys
import threading
import time
import unittest

sys.path.insert(0, os.getcwd())

PATIENCE = 10


class Job(threading.Thread):
    """Calls something on a thread of its own and keeps what it returned or raised."""

    def __init__(self, call, *arguments):
        super().__init__(daemon=True)
        self.call, self.arguments, self.begun, self.result = call, arguments, threading.Event(), None
        self.start()
        self.begun.wait(PATIENCE)

    def run(self):
        self.begun.set()
        try:
            self.result = self.call(*self.arguments)
        except Exception as error:
            self.result = error

    def outcome(self):
        self.join(PATIENCE)
        if self.is_alive():
            raise AssertionError("a call does not end")
        return self.result


class Bank:
    """A loader whose loads begin visibly and end when the test says so."""

    def __init__(self):
        self.lock = threading.Lock()
        self.begun = threading.Semaphore(0)
        self.gates = []
        self.calls = []
        self.answers = {}

    def __call__(self, key):
        with self.lock:
            number = len(self.calls)
            self.calls.append(key)
            gate = self.gates[number] if number < len(self.gates) else None
        self.begun.release()
        if gate is not None and not gate.wait(PATIENCE):
            raise AssertionError("the test never opened the gate")
        answer = self.answers.get(number, f"{key}{number + 1}")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def hold(self, count):
        """Lets the first loads wait, each for its own gate."""
        self.gates = [threading.Event() for _ in range(count)]
        return self.gates

    def wait_begun(self, moment=PATIENCE, jobs=()):
        """True if another load has begun, at the latest after the moment, or when all the jobs are done."""
        end = time.monotonic() + moment
        while not self.begun.acquire(timeout=min(moment, 0.05) if jobs else moment):
            if time.monotonic() >= end or not any(job.is_alive() for job in jobs):
                return False
        return True


class CacheCase(unittest.TestCase):
    def setUp(self):
        self.now = 1000.0
        self.bank = Bank()
        self.cache = importlib.import_module("ratecache").TTLCache(self.bank, ttl=10, clock=lambda: self.now)

    def jobs(self, key, count):
        return [Job(self.cache.get, key) for _ in range(count)]


class Failures(CacheCase):
    def test_all_who_wait_get_the_failure(self):
        self.bank.answers[0] = LookupError("bank closed")
        gate, *_ = self.bank.hold(1)
        jobs = self.jobs("a", 6)
        self.assertTrue(self.bank.wait_begun())
        self.assertFalse(self.bank.wait_begun(0.2), "a second load began while the first was under way")
        gate.set()
        outcomes = [job.outcome() for job in jobs]
        failed = [outcome for outcome in outcomes if isinstance(outcome, LookupError)]
        # On a very slow machine one of them may come too late for the first load, and then loads again.
        self.assertGreaterEqual(len(failed), 2)
        self.assertEqual({str(error) for error in failed}, {"bank closed"})
        self.assertLessEqual({outcome for outcome in outcomes if isinstance(outcome, str)}, {"a2"})

    def test_a_failure_is_not_kept(self):
        self.bank.answers |= {0: LookupError("one"), 1: LookupError("two")}
        for message in ("one", "two"):
            with self.assertRaisesRegex(LookupError, message):
                self.cache.get("a")
        self.assertEqual([self.cache.get("a"), self.cache.get("a")], ["a3", "a3"])
        self.assertEqual(self.cache.stats(), {"hits": 1, "loads": 3})

    def test_a_failure_does_not_bring_an_expired_value_back(self):
        self.cache.get("a")
        self.now += 10
        self.bank.answers[1] = LookupError("bank closed")
        with self.assertRaises(LookupError):
            self.cache.get("a")
        self.assertEqual(self.cache.get("a"), "a3")


class Invalidation(CacheCase):
    def test_a_load_under_way_is_not_kept(self):
        gate, *_ = self.bank.hold(1)
        job = Job(self.cache.get, "a")
        self.assertTrue(self.bank.wait_begun())
        Job(self.cache.invalidate, "a").outcome()
        gate.set()
        self.assertEqual(job.outcome(), "a1")
        self.assertEqual(Job(self.cache.get, "a").outcome(), "a2")
        self.assertEqual(Job(self.cache.get, "a").outcome(), "a2")

    def test_a_later_get_does_not_wait_for_the_old_load(self):
        gate, *_ = self.bank.hold(1)
        old = Job(self.cache.get, "a")
        self.assertTrue(self.bank.wait_begun())
        Job(self.cache.invalidate, "a").outcome()
        self.assertEqual(Job(self.cache.get, "a").outcome(), "a2")
        self.assertTrue(old.is_alive())
        gate.set()
        self.assertEqual(old.outcome(), "a1")
        self.assertEqual(self.cache.get("a"), "a2")

    def test_later_gets_share_the_new_load(self):
        first, second = self.bank.hold(2)
        old = Job(self.cache.get, "a")
        self.assertTrue(self.bank.wait_begun())
        Job(self.cache.invalidate, "a").outcome()
        new = self.jobs("a", 1)
        self.assertTrue(self.bank.wait_begun())
        first.set()
        self.assertEqual(old.outcome(), "a1")
        new += self.jobs("a", 3)
        self.assertFalse(self.bank.wait_begun(0.15), "the new load was not shared")
        second.set()
        self.assertEqual([job.outcome() for job in new], ["a2"] * 4)
        self.assertEqual(self.cache.get("a"), "a2")

    def test_an_old_load_that_fails_does_no_harm(self):
        self.bank.answers[0] = LookupError("bank closed")
        gate, *_ = self.bank.hold(1)
        old = Job(self.cache.get, "a")
        self.assertTrue(self.bank.wait_begun())
        Job(self.cache.invalidate, "a").outcome()
        self.assertEqual(Job(self.cache.get, "a").outcome(), "a2")
        gate.set()
        self.assertIsInstance(old.outcome(), LookupError)
        self.assertEqual(self.cache.get("a"), "a2")

    def test_invalidating_touches_one_key(self):
        self.cache.get("a")
        self.cache.get("b")
        self.cache.invalidate("a")
        self.cache.invalidate("never seen")
        self.assertEqual([self.cache.get("b"), self.cache.get("a")], ["b2", "a3"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
