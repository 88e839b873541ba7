"""A cache with a limit on the weight of what it holds."""

from cache.loader import CachedLoader
from cache.lru import LruCache
from cache.stats import Stats

__all__ = ["CachedLoader", "LruCache", "Stats"]
