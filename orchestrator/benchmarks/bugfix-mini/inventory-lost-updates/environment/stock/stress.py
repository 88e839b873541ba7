"""Eight threads that receive one piece at a time, with the interpreter switching between them often."""

import sys
import threading

from .service import StockService
from .store import MemoryStore

THREADS = 8
ROUNDS = 1000


def main():
    sys.setswitchinterval(1e-6)
    service = StockService(MemoryStore())

    def work():
        for _ in range(ROUNDS):
            service.receive("hall", "bolt", 1)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"expected {THREADS * ROUNDS}, found {service.level('hall', 'bolt')}")


if __name__ == "__main__":
    main()
