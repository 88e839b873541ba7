"""The cache."""

import time

from .entry import Entry


class TTLCache:
    """Keeps what loader(key) returned for ttl seconds."""

    def __init__(self, loader, ttl, clock=time.time):
        self._loader = loader
        self._ttl = ttl
        self._clock = clock
        self._entries = {}
        self._hits = 0
        self._loads = 0

    def get(self, key):
        """Returns the value of the key, loading it if there is no fresh one; raises what the loader raises."""
        entry = self._entries.get(key)
        if entry is not None and entry.is_fresh(self._clock(), self._ttl):
            self._hits += 1
            return entry.value
        self._loads += 1
        value = self._loader(key)
        self._entries[key] = Entry(value)
        return value

    def invalidate(self, key):
        """Forgets the value of the key."""
        self._entries.pop(key, None)

    def stats(self):
        return {"hits": self._hits, "loads": self._loads}
