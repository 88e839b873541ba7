"""A cache whose entries expire."""

from .cache import TTLCache

__all__ = ["TTLCache"]
