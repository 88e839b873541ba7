"""The command line."""

import sys

from . import report
from .reader import ReaderError, read_contacts

COMMANDS = {"list": report.listing, "stats": report.stats, "labels": report.labels}


def main(arguments):
    if len(arguments) != 2 or arguments[0] not in COMMANDS:
        print("usage: python3 -m contacts list|stats|labels FILE", file=sys.stderr)
        return 2
    command, path = arguments
    try:
        contacts = read_contacts(path)
    except (OSError, ReaderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in COMMANDS[command](contacts):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
