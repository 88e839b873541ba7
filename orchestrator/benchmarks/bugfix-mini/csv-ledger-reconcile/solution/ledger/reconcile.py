"""Compares the bank's statement with our books."""

from collections import defaultdict
from dataclasses import dataclass, field

from ledger.entries import Entry

Pair = tuple[Entry, Entry]


@dataclass
class Report:
    matched: list[Pair] = field(default_factory=list)
    differences: list[Pair] = field(default_factory=list)
    only_bank: list[Entry] = field(default_factory=list)
    only_books: list[Entry] = field(default_factory=list)
    balance: int = 0  # cents

    @property
    def clean(self) -> bool:
        return not (self.differences or self.only_bank or self.only_books)


def reference(entry: Entry) -> str:
    return entry.reference.strip().casefold()


def reconcile(bank: list[Entry], books: list[Entry], days: int) -> Report:
    """Pairs by reference, then by date; both lists are in the order of their files."""
    report = Report(balance=sum(entry.cents for entry in bank) - sum(entry.cents for entry in books))
    paired = by_reference(bank, books)
    used = {id(entry) for pair in paired for entry in pair}
    paired += by_date(
        [entry for entry in bank if id(entry) not in used], [entry for entry in books if id(entry) not in used], days
    )
    used = {id(entry) for pair in paired for entry in pair}
    for pair in sorted(paired, key=lambda pair: pair[0].line):
        (report.matched if pair[0].cents == pair[1].cents else report.differences).append(pair)
    report.only_bank = [entry for entry in bank if id(entry) not in used]
    report.only_books = [entry for entry in books if id(entry) not in used]
    return report


def by_reference(bank: list[Entry], books: list[Entry]) -> list[Pair]:
    sides: dict[str, tuple[list[Entry], list[Entry]]] = defaultdict(lambda: ([], []))
    for side, entries in enumerate((bank, books)):
        for entry in entries:
            if reference(entry):
                sides[reference(entry)][side].append(entry)
    pairs: list[Pair] = []
    for ours, theirs in sides.values():
        for entry in list(ours):
            equal = next((other for other in theirs if other.cents == entry.cents), None)
            if equal is not None:
                pairs.append((entry, equal))
                ours.remove(entry)
                theirs.remove(equal)
        pairs.extend(zip(ours, theirs))
    return pairs


def by_date(bank: list[Entry], books: list[Entry], days: int) -> list[Pair]:
    left, pairs = list(books), []
    for entry in bank:
        suitable = [
            other
            for other in left
            if other.cents == entry.cents
            and abs((other.date - entry.date).days) <= days
            and not (reference(entry) and reference(other))
        ]
        if suitable:
            nearest = min(suitable, key=lambda other: abs((other.date - entry.date).days))
            pairs.append((entry, nearest))
            left.remove(nearest)
    return pairs
