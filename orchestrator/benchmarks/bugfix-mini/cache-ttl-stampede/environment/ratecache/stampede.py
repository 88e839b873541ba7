"""Eight threads that want the same rate at the same time, from a bank that takes its time."""

import threading
import time

from .cache import TTLCache


def slow_bank(pair):
    time.sleep(0.2)
    return f"rate of {pair}"


def main():
    cache = TTLCache(slow_bank, ttl=600)
    threads = [threading.Thread(target=cache.get, args=("EUR/USD",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(threads)} threads, {cache.stats()['loads']} loads")


if __name__ == "__main__":
    main()
