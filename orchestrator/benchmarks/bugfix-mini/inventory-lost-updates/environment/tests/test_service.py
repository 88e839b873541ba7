import unittest

from stock.errors import OutOfStock
from stock.reorder import Reorder
from stock.service import StockService
from stock.store import MemoryStore


class OneThread(unittest.TestCase):
    def test_receive_take_transfer(self):
        service = StockService(MemoryStore())
        service.receive("hall", "bolt", 10)
        service.take("hall", "bolt", 3)
        service.transfer("hall", "shop", "bolt", 2)
        self.assertEqual((service.level("hall", "bolt"), service.total("bolt")), (5, 7))
        with self.assertRaises(OutOfStock):
            service.take("shop", "bolt", 3)

    def test_reorder_receives_a_batch(self):
        service = StockService(MemoryStore())
        service.receive("hall", "bolt", 10)
        service.subscribe(Reorder(service, minimum=5, batch=20))
        service.take("hall", "bolt", 6)
        self.assertEqual(service.level("hall", "bolt"), 24)


if __name__ == "__main__":
    unittest.main()
