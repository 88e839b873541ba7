"""The command line."""

import argparse
from datetime import date

from . import zones
from .report import daily, render
from .sales import read_sales


def main():
    parser = argparse.ArgumentParser(prog="takings")
    parser.add_argument("file")
    parser.add_argument("--zone", required=True, choices=sorted(zones.RULES))
    parser.add_argument("--from", dest="first", required=True, type=date.fromisoformat)
    parser.add_argument("--to", dest="last", required=True, type=date.fromisoformat)
    options = parser.parse_args()
    days = daily(read_sales(options.file), zones.load(options.zone), options.first, options.last)
    print("\n".join(render(days)))


if __name__ == "__main__":
    main()
