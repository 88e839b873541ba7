"""A store in memory; the one in production has the same three methods and lives elsewhere."""

import threading


class MemoryStore:
    """Levels by place and article. Each call is atomic."""

    def __init__(self):
        self._lock = threading.Lock()
        self._levels = {}

    def get(self, place, article):
        with self._lock:
            return self._levels.get((place, article), 0)

    def put(self, place, article, level):
        with self._lock:
            self._levels[place, article] = level

    def places(self):
        with self._lock:
            return sorted({place for place, _ in self._levels})
