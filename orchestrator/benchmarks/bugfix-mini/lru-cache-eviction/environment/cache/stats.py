"""Counts of what a cache did."""

from dataclasses import dataclass


@dataclass
class Stats:
    hits: int = 0
    misses: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Hits per look-up; 0 before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0
