import importlib
import os
import sys
import threading
import unittest

sys.path.insert(0, os.getcwd())

PATIENCE = 10


class PausingStore:
    """A store that, once armed, pauses after the next write until somebody read every place or a moment has passed."""

    def __init__(self, store, wait=0.25):
        self.store = store
        self.wait = wait
        self.armed = False
        self.written = threading.Event()
        self.totalled = threading.Event()

    def get(self, place, article):
        return self.store.get(place, article)

    def places(self):
        return self.store.places()

    def put(self, place, article, level):
        self.store.put(place, article, level)
        if self.armed:
            self.armed = False
            self.written.set()
            self.totalled.wait(self.wait)


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


class Transfers(unittest.TestCase):
    def setUp(self):
        self.errors = importlib.import_module("stock.errors")
        self.StockService = importlib.import_module("stock.service").StockService
        self.MemoryStore = importlib.import_module("stock.store").MemoryStore

    def test_total_never_sees_pieces_on_their_way(self):
        store = PausingStore(self.MemoryStore())
        service = self.StockService(store)
        service.receive("hall", "bolt", 10)
        service.receive("shop", "bolt", 10)
        store.armed = True

        def count():
            store.written.wait(PATIENCE)
            total = service.total("bolt")
            store.totalled.set()
            return total

        self.assertEqual(run(lambda: service.transfer("hall", "shop", "bolt", 4), count), [None, 20])
        self.assertEqual((service.level("hall", "bolt"), service.level("shop", "bolt")), (6, 14))

    def test_opposite_transfers(self):
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        self.addCleanup(sys.setswitchinterval, before)
        service = self.StockService(self.MemoryStore())
        for place in ("hall", "shop", "van"):
            service.receive(place, "bolt", 1000)

        def move(source, target):
            for _ in range(200):
                service.transfer(source, target, "bolt", 1)

        def watch():
            return {service.total("bolt") for _ in range(200)}

        results = run(
            lambda: move("hall", "shop"),
            lambda: move("shop", "hall"),
            lambda: move("shop", "van"),
            watch,
        )
        self.assertEqual(results, [None, None, None, {3000}])
        self.assertEqual([service.level(place, "bolt") for place in ("hall", "shop", "van")], [1000, 800, 1200])

    def test_a_refused_transfer_changes_nothing(self):
        service = self.StockService(self.MemoryStore())
        service.receive("hall", "bolt", 3)
        changes = []
        service.subscribe(lambda *change: changes.append(change))

        def refused():
            with self.assertRaises(self.errors.OutOfStock):
                service.transfer("hall", "shop", "bolt", 4)
            with self.assertRaises(self.errors.StockError):
                service.transfer("hall", "hall", "bolt", 1)
            with self.assertRaises(self.errors.StockError):
                service.transfer("hall", "shop", "bolt", 0)

        self.assertEqual(run(refused), [None])
        self.assertEqual(changes, [])
        self.assertEqual(run(lambda: service.total("bolt")), [3])

    def test_listeners_hear_of_both_places(self):
        service = self.StockService(self.MemoryStore())
        service.receive("hall", "bolt", 3)
        changes = []
        service.subscribe(lambda *change: changes.append((*change, service.level(*change[:2]), service.total("bolt"))))
        self.assertEqual(run(lambda: service.transfer("hall", "shop", "bolt", 2)), [None])
        self.assertEqual(sorted(changes), [("hall", "bolt", 1, 1, 3), ("shop", "bolt", 2, 2, 3)])


if __name__ == "__main__":
    unittest.main(verbosity=2)
