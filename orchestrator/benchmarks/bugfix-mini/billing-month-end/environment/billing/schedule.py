"""Subscriptions, the days they are charged on, and their invoices."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from billing.dates import add_months
from billing.plans import Plan


@dataclass(frozen=True)
class Subscription:
    customer: str
    plan: Plan
    start: date
    ended: date | None = None  # the last day of service, if it was cancelled


@dataclass(frozen=True)
class Invoice:
    number: int
    customer: str
    first_day: date
    last_day: date
    cents: int


def renewals(subscription: Subscription, until: date) -> Iterator[date]:
    """The days after the first on which the subscription is charged, up to and including `until`."""
    if subscription.ended is not None:
        until = min(until, subscription.ended)
    day = add_months(subscription.start, subscription.plan.months)
    while day <= until:
        yield day
        day = add_months(day, subscription.plan.months)


def next_renewal(subscription: Subscription, after: date) -> date | None:
    """The first day later than `after` on which the subscription is charged; None if it has ended by then.

    The start is a day on which it is charged, too.
    """
    day = subscription.start
    while day <= after:
        day = add_months(day, subscription.plan.months)
    if subscription.ended is not None and day > subscription.ended:
        return None
    return day


def invoices(subscription: Subscription, until: date) -> list[Invoice]:
    """The invoices for all charges up to and including `until`, oldest first."""
    if subscription.start > until:
        return []
    made = []
    for number, first in enumerate([subscription.start, *renewals(subscription, until)], start=1):
        last = add_months(first, subscription.plan.months) - timedelta(days=1)
        if subscription.ended is not None:
            last = min(last, subscription.ended)
        made.append(Invoice(number, subscription.customer, first, last, subscription.plan.cents))
    return made
