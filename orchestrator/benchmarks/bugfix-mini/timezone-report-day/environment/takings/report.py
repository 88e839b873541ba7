"""Takings per day of a shop."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

DAY = timedelta(hours=24)


@dataclass(frozen=True)
class Day:
    date: date
    hours: float
    sales: int
    cents: int


def daily(sales, zone, first, last):
    """Returns the Day of every date from first to last, both included; zone is a ZoneInfo."""
    days = []
    start = datetime.combine(first, time(), tzinfo=zone).astimezone(UTC)
    current = first
    while current <= last:
        inside = [sale for sale in sales if start <= sale.at < start + DAY]
        days.append(Day(current, DAY / timedelta(hours=1), len(inside), sum(sale.cents for sale in inside)))
        start += DAY
        current += timedelta(days=1)
    return days


def render(days):
    return [f"{day.date}  {day.hours:g} h  {day.cents / 100:>9.2f}" for day in days]
