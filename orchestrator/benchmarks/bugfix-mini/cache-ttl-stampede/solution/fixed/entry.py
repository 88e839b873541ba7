"""A value and when it came."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    value: Any
    loaded_at: float

    def is_fresh(self, now, ttl):
        return now - self.loaded_at < ttl
