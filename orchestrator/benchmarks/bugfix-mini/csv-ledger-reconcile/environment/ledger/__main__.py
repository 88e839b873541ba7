import argparse
import sys
from pathlib import Path

from ledger.entries import FormatError
from ledger.reader import read_bank, read_books


def show(given: argparse.Namespace) -> int:
    read = read_bank if given.kind == "bank" else read_books
    for entry in read(given.file):
        sign, cents = "-" if entry.cents < 0 else "", abs(entry.cents)
        print(entry.line, entry.date, f"{sign}{cents // 100}.{cents % 100:02}", entry.reference, entry.text, sep="\t")
    return 0


def reconcile(given: argparse.Namespace) -> int:
    print("ledger: reconcile is not there yet", file=sys.stderr)
    return 2


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
    command.set_defaults(run=reconcile)
    return parser.parse_args()


def main() -> int:
    given = arguments()
    try:
        return given.run(given)
    except (OSError, FormatError) as error:
        print(f"ledger: {error}", file=sys.stderr)
        return 2


sys.exit(main())
