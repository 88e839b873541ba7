"""A value and when it came."""

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    value: Any
    loaded_at: float = field(default_factory=time.time)

    def is_fresh(self, now, ttl):
        return now - self.loaded_at <= ttl
