import importlib
import os
import sys
import threading
import unittest

sys.path.insert(0, os.getcwd())

PATIENCE = 10


class MeetingStore:
    """A store whose readers of a level wait a moment for a second reader, so that a race shows every time."""

    def __init__(self, wait=0.25):
        self.levels = {}
        self.lock = threading.Lock()
        self.meeting = threading.Barrier(2)
        self.wait = wait
        self.armed = False

    def get(self, place, article):
        with self.lock:
            level = self.levels.get((place, article), 0)
        if self.armed:
            try:
                self.meeting.wait(self.wait)
            except threading.BrokenBarrierError:
                self.armed = False
        return level

    def put(self, place, article, level):
        with self.lock:
            self.levels[place, article] = level

    def places(self):
        with self.lock:
            return sorted({place for place, _ in self.levels})


def run(*jobs):
    """Runs the jobs on threads of their own; returns each one's result or exception."""
    results = [None] * len(jobs)

    def work(index):
        try:
            results[index] = jobs[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if any(thread.is_alive() for thread in threads):
        raise AssertionError("the threads wait for each other")
    return results


class Levels(unittest.TestCase):
    def setUp(self):
        self.errors = importlib.import_module("stock.errors")
        self.StockService = importlib.import_module("stock.service").StockService
        self.MemoryStore = importlib.import_module("stock.store").MemoryStore
        self.Reorder = importlib.import_module("stock.reorder").Reorder

    def test_two_deliveries_at_once(self):
        store = MeetingStore()
        service = self.StockService(store)
        store.armed = True
        run(lambda: service.receive("hall", "bolt", 10), lambda: service.receive("hall", "bolt", 10))
        store.armed = False
        self.assertEqual(service.level("hall", "bolt"), 20)

    def test_the_last_piece_is_taken_once(self):
        store = MeetingStore()
        service = self.StockService(store)
        service.receive("hall", "bolt", 1)
        store.armed = True
        results = run(*[lambda: service.take("hall", "bolt", 1)] * 4)
        store.armed = False
        self.assertEqual(sum(result == 0 for result in results), 1)
        self.assertEqual(sum(isinstance(result, self.errors.OutOfStock) for result in results), 3)
        self.assertEqual(service.level("hall", "bolt"), 0)

    def test_a_delivery_and_a_sale_at_once(self):
        store = MeetingStore()
        service = self.StockService(store)
        service.receive("hall", "bolt", 5)
        store.armed = True
        run(lambda: service.receive("hall", "bolt", 10), lambda: service.take("hall", "bolt", 3))
        store.armed = False
        self.assertEqual(service.level("hall", "bolt"), 12)

    def test_many_threads(self):
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        self.addCleanup(sys.setswitchinterval, before)
        service = self.StockService(self.MemoryStore())

        def work():
            for _ in range(250):
                service.receive("hall", "bolt", 2)
                service.take("hall", "bolt", 1)

        run(*[work] * 4)
        self.assertEqual(service.level("hall", "bolt"), 1000)

    def test_a_refusal_leaves_the_service_usable(self):
        service = self.StockService(self.MemoryStore())
        service.receive("hall", "bolt", 2)

        def refused():
            for call in (
                lambda: service.take("hall", "bolt", 3),
                lambda: service.receive("hall", "bolt", 0),
                lambda: service.take("hall", "bolt", -1),
            ):
                with self.assertRaises(self.errors.StockError):
                    call()

        self.assertEqual(run(refused), [None])
        self.assertEqual(run(lambda: service.take("hall", "bolt", 2)), [0])

    def test_a_store_that_fails_leaves_the_service_usable(self):
        store = self.MemoryStore()
        service = self.StockService(store)
        service.receive("hall", "bolt", 2)
        put = store.put
        store.put = lambda *_: 1 / 0
        self.assertIsInstance(run(lambda: service.take("hall", "bolt", 1))[0], ZeroDivisionError)
        store.put = put
        self.assertEqual(run(lambda: service.take("hall", "bolt", 1)), [1])

    def test_listeners_may_call_the_service(self):
        service = self.StockService(self.MemoryStore())
        service.receive("hall", "bolt", 10)
        seen = []
        service.subscribe(
            lambda place, article, level: seen.append((level, service.level(place, article), threading.get_ident()))
        )
        service.subscribe(self.Reorder(service, minimum=5, batch=20))

        def job():
            service.take("hall", "bolt", 6)
            return threading.get_ident()

        (thread,) = run(job)
        self.assertEqual(seen, [(4, 4, thread), (24, 24, thread)])
        self.assertEqual(service.level("hall", "bolt"), 24)


if __name__ == "__main__":
    unittest.main(verbosity=2)
