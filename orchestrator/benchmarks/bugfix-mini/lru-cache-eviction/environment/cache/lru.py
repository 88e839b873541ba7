"""Least recently used out first."""

from collections.abc import Callable, Hashable
from typing import Any

from cache.stats import Stats


class LruCache:
    """Holds values up to a total weight of `limit`."""

    def __init__(
        self,
        limit: int,
        weigh: Callable[[Any], int] = len,
        on_evict: Callable[[Hashable, Any], None] | None = None,
    ) -> None:
        self.limit = limit
        self.weigh = weigh
        self.on_evict = on_evict
        self.stats = Stats()
        self.weight = 0
        self._entries: dict[Hashable, tuple[Any, int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def keys(self) -> list[Hashable]:
        """The keys, least recently used first."""
        return list(self._entries)

    def get(self, key: Hashable, default: Any = None) -> Any:
        value = self.peek(key)
        if not value:
            self.stats.misses += 1
            return default
        self.stats.hits += 1
        return value

    def peek(self, key: Hashable, default: Any = None) -> Any:
        """The value, without counting as a use."""
        return self._entries[key][0] if key in self._entries else default

    def put(self, key: Hashable, value: Any) -> bool:
        """Stores a value; False if it is too heavy for this cache."""
        weight = self.weigh(value)
        self._entries[key] = (value, weight)
        self.weight += weight
        while self.weight > self.limit:
            self._evict(next(iter(self._entries)))
        return key in self._entries

    def remove(self, key: Hashable) -> None:
        """Removes an entry, if it is there."""
        if key in self._entries:
            _, weight = self._entries.pop(key)
            self.weight -= weight

    def clear(self) -> None:
        self._entries.clear()
        self.weight = 0

    def _evict(self, key: Hashable) -> None:
        value = self.peek(key)
        self.remove(key)
        self.stats.evictions += 1
        if self.on_evict is not None:
            self.on_evict(key, value)
