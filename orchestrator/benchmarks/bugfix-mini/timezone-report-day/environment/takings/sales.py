"""Reads the sales that a till sent."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Sale:
    at: datetime  # in UTC
    cents: int


def sale(at, cents):
    """A sale at an ISO 8601 time that has an offset."""
    moment = datetime.fromisoformat(at)
    if moment.tzinfo is None:
        raise ValueError(f"{at}: a sale needs a time with an offset")
    return Sale(moment.astimezone(UTC), cents)


def read_sales(path):
    with open(path, encoding="utf-8") as file:
        records = [json.loads(line) for line in file if line.strip()]
    return [sale(record["at"], record["cents"]) for record in records]
