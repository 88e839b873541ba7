"""The cache."""

import threading
import time
from concurrent.futures import Future

from .entry import Entry


class TTLCache:
    """Keeps what loader(key) returned for ttl seconds.

    A load under way is a Future in _flights; whoever finds one waits for it. The lock is never held during a load.
    """

    def __init__(self, loader, ttl, clock=time.monotonic):
        self._loader = loader
        self._ttl = ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._entries = {}
        self._flights = {}
        self._hits = 0
        self._loads = 0

    def get(self, key):
        """Returns the value of the key, loading it if there is no fresh one; raises what the loader raises."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.is_fresh(self._clock(), self._ttl):
                self._hits += 1
                return entry.value
            flight = self._flights.get(key)
            if flight is None:
                self._loads += 1
                own = self._flights[key] = Future()
            else:
                self._hits += 1
        return self._load(key, own) if flight is None else flight.result()

    def _load(self, key, flight):
        try:
            value = self._loader(key)
        except BaseException as error:
            self._land(key, flight)
            flight.set_exception(error)
            raise
        self._land(key, flight, Entry(value, self._clock()))
        flight.set_result(value)
        return value

    def _land(self, key, flight, entry=None):
        with self._lock:
            # After an invalidation the flight is no longer the key's, and what it brings is not kept.
            if self._flights.get(key) is flight:
                del self._flights[key]
                if entry is not None:
                    self._entries[key] = entry

    def invalidate(self, key):
        """Forgets the value of the key."""
        with self._lock:
            self._entries.pop(key, None)
            self._flights.pop(key, None)

    def stats(self):
        with self._lock:
            return {"hits": self._hits, "loads": self._loads}
