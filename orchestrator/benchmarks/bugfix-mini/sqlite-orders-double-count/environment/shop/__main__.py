"""The command line."""

import argparse

from . import db, reports

COLUMNS = {"orders": 8, "pieces": 8, "ordered_cents": 11, "paid_cents": 11, "open_cents": 11}


def main():
    parser = argparse.ArgumentParser(prog="shop")
    parser.add_argument("report", choices=["customers", "months", "articles"])
    parser.add_argument("--db", default="shop.db")
    options = parser.parse_args()
    conn = db.connect(options.db)
    rows = getattr(reports, options.report)(conn)
    conn.close()
    first = options.report.removesuffix("s")
    keys = [key for key in COLUMNS if rows and key in rows[0]]
    print(f"{first:<18}" + "".join(f"{key.removesuffix('_cents'):>{COLUMNS[key]}}" for key in keys))
    for row in rows:
        print(f"{row[first]:<18}" + "".join(_cell(key, row[key]) for key in keys))


def _cell(key, value):
    text = f"{value / 100:.2f}" if key.endswith("_cents") else str(value)
    return f"{text:>{COLUMNS[key]}}"


if __name__ == "__main__":
    main()
