"""Reads the two kinds of file."""

import csv
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path

from ledger.entries import Entry, FormatError
from ledger.money import parse_cents

Row = dict[str, str]


def bank_entry(line: int, row: Row) -> Entry:
    day = datetime.strptime(row["Date"].strip(), "%d.%m.%Y").date()
    return Entry(line, day, parse_cents(row["Amount"]), row["Reference"], row["Text"])


def books_entry(line: int, row: Row) -> Entry:
    debit, credit = row["debit"].strip(), row["credit"].strip()
    if bool(debit) == bool(credit):
        raise ValueError("needs either a debit or a credit")
    cents = parse_cents(debit) if debit else -parse_cents(credit)
    return Entry(line, date.fromisoformat(row["date"].strip()), cents, row["ref"], row["memo"])


def read_entries(path: Path, make: Callable[[int, Row], Entry]) -> list[Entry]:
    entries = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=1):
            try:
                entries.append(make(line, row))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise FormatError(f"{path}: entry {line}: {error}") from None
    return entries


def read_bank(path: Path) -> list[Entry]:
    return read_entries(path, bank_entry)


def read_books(path: Path) -> list[Entry]:
    return read_entries(path, books_entry)
