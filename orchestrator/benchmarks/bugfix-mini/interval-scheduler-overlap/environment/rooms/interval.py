"""Stretches of time."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, order=True)
class Interval:
    """From `start` up to, but not including, `end`."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"{self.end} is not after {self.start}")

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    def overlaps(self, other: "Interval") -> bool:
        """Whether the two have time in common."""
        return other.start <= self.start <= other.end or other.start <= self.end <= other.end


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as few intervals, in ascending order."""
    merged: list[Interval] = []
    for interval in sorted(intervals):
        if merged and interval.start < merged[-1].end:
            merged[-1] = Interval(merged[-1].start, interval.end)
        else:
            merged.append(interval)
    return merged


def gaps(taken: Iterable[Interval], within: Interval) -> list[Interval]:
    """The time in `within` that is not taken."""
    found = []
    free_from = within.start
    for interval in sorted(taken):
        if interval.start > free_from:
            found.append(Interval(free_from, interval.start))
        free_from = interval.end
    return found
