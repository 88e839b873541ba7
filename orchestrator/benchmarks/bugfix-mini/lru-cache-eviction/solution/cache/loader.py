"""A function with a cache in front."""

from collections.abc import Callable, Hashable
from typing import Any

from cache.lru import LruCache

MISSING = object()


class CachedLoader:
    """Calls `load(key)` for what is not in the cache."""

    def __init__(self, cache: LruCache, load: Callable[[Hashable], Any]) -> None:
        self.cache = cache
        self.load = load

    def __call__(self, key: Hashable) -> Any:
        value = self.cache.get(key, MISSING)
        if value is MISSING:
            value = self.load(key)
            self.cache.put(key, value)
        return value
