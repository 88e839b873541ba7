"""Takings per day of a shop."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta


@dataclass(frozen=True)
class Day:
    date: date
    hours: float
    sales: int
    cents: int


def daily(sales, zone, first, last):
    """Returns the Day of every date from first to last, both included; zone is a ZoneInfo."""
    by_date = {}
    for sale in sales:
        by_date.setdefault(sale.at.astimezone(zone).date(), []).append(sale.cents)
    days = []
    current = first
    while current <= last:
        inside = by_date.get(current, [])
        days.append(Day(current, _hours(current, zone), len(inside), sum(inside)))
        current += timedelta(days=1)
    return days


def _hours(day, zone):
    # Subtracted in UTC: within one zone datetime subtracts what the clocks show.
    start, end = (
        datetime.combine(moment, time(), tzinfo=zone).astimezone(UTC) for moment in (day, day + timedelta(days=1))
    )
    return (end - start) / timedelta(hours=1)


def render(days):
    return [f"{day.date}  {day.hours:g} h  {day.cents / 100:>9.2f}" for day in days]
