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


class SingleFlight(CacheCase):
    def test_one_load_for_all_who_ask(self):
        gate, *_ = self.bank.hold(6)
        jobs = self.jobs("a", 6)
        self.assertTrue(self.bank.wait_begun())
        self.assertFalse(self.bank.wait_begun(0.15), "a second load began while the first was under way")
        gate.set()
        self.assertEqual([job.outcome() for job in jobs], ["a1"] * 6)
        self.assertEqual(self.cache.stats(), {"hits": 5, "loads": 1})

    def test_one_load_when_an_entry_expires(self):
        self.assertEqual(self.cache.get("a"), "a1")
        self.assertTrue(self.bank.wait_begun())
        _, gate, *_ = self.bank.hold(6)
        self.now += 10
        jobs = self.jobs("a", 5)
        self.assertTrue(self.bank.wait_begun(jobs=jobs), "the entry did not expire")
        self.assertFalse(self.bank.wait_begun(0.15), "a second load began while the first was under way")
        gate.set()
        self.assertEqual([job.outcome() for job in jobs], ["a2"] * 5)
        self.assertEqual(self.cache.stats(), {"hits": 4, "loads": 2})

    def test_keys_do_not_wait_for_each_other(self):
        slow, *_ = self.bank.hold(1)
        waiting = Job(self.cache.get, "a")
        self.assertTrue(self.bank.wait_begun())
        self.assertEqual(Job(self.cache.get, "b").outcome(), "b2")
        self.assertEqual(Job(self.cache.get, "b").outcome(), "b2")
        Job(self.cache.invalidate, "b").outcome()
        self.assertEqual(Job(self.cache.stats).outcome(), {"hits": 1, "loads": 2})
        self.assertTrue(waiting.is_alive())
        slow.set()
        self.assertEqual(waiting.outcome(), "a1")

    def test_two_keys_load_at_the_same_time(self):
        gates = self.bank.hold(2)
        jobs = self.jobs("a", 1) + self.jobs("b", 1)
        self.assertTrue(self.bank.wait_begun() and self.bank.wait_begun())
        for gate in gates:
            gate.set()
        self.assertEqual({job.outcome()[0] for job in jobs}, {"a", "b"})

    def test_a_loader_may_ask_for_other_keys(self):
        cache = importlib.import_module("ratecache").TTLCache(
            lambda key: key + cache.get(key[1:]) if key else "!", ttl=10
        )
        self.assertEqual(Job(cache.get, "abc").outcome(), "abcbcc!")
        self.assertEqual(cache.stats(), {"hits": 0, "loads": 4})
        self.assertEqual(Job(cache.get, "bc").outcome(), "bcc!")

    def test_counters_are_exact(self):
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        self.addCleanup(sys.setswitchinterval, before)

        def work():
            for number in range(400):
                self.cache.get(str(number % 4))

        jobs = [Job(work) for _ in range(4)]
        for job in jobs:
            self.assertIsNone(job.outcome())
        self.assertEqual(self.cache.stats(), {"hits": 1596, "loads": 4})
        self.assertEqual(sorted(self.bank.calls), ["0", "1", "2", "3"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
