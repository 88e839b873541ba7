import argparse
import json
import sys
from pathlib import Path

from ledger.entries import FormatError
from ledger.money import format_cents
from ledger.reader import read_bank, read_books
from ledger.reconcile import reconcile


def show(given: argparse.Namespace) -> int:
    read = read_bank if given.kind == "bank" else read_books
    for entry in read(given.file):
        print(entry.line, entry.date, format_cents(entry.cents), entry.reference, entry.text, sep="\t")
    return 0


def compare(given: argparse.Namespace) -> int:
    report = reconcile(read_bank(given.bank), read_books(given.books), given.days)
    shown = {
        "matched": [[ours.line, theirs.line] for ours, theirs in report.matched],
        "differences": [
            [ours.line, theirs.line, format_cents(ours.cents - theirs.cents)] for ours, theirs in report.differences
        ],
        "only_bank": [entry.line for entry in report.only_bank],
        "only_books": [entry.line for entry in report.only_books],
        "balance": format_cents(report.balance),
    }
    print(json.dumps(shown))
    return 0 if report.clean else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ledger")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("show")
    command.add_argument("kind", choices=["bank", "books"])
    command.add_argument("file", type=Path)
    command.set_defaults(run=show)
    command = commands.add_parser("reconcile")
    command.add_argument("bank", type=Path)
    command.add_argument("books", type=Path)
    command.add_argument("--days", type=int, default=3)
    command.set_defaults(run=compare)
    return parser.parse_args()


def main() -> int:
    given = arguments()
    try:
        return given.run(given)
    except (OSError, FormatError) as error:
        print(f"ledger: {error}", file=sys.stderr)
        return 2


sys.exit(main())
