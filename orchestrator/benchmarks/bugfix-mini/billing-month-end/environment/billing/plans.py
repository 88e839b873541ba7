"""The plans we sell."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    name: str
    months: int
    cents: int


PLANS = {
    plan.name: plan
    for plan in (
        Plan("monthly", 1, 900),
        Plan("quarterly", 3, 2400),
        Plan("yearly", 12, 8800),
    )
}
