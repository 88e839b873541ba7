import argparse

from shelf.db import connect
from shelf.load import load
from shelf.search import SORTS, search


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="shelf")
    commands = parser.add_subparsers(dest="command", required=True)
    loading = commands.add_parser("load")
    loading.add_argument("csv_file")
    searching = commands.add_parser("search")
    searching.add_argument("--title")
    searching.add_argument("--author")
    searching.add_argument("--sort", choices=SORTS, default="title")
    searching.add_argument("--limit", type=int, default=20)
    for command in (loading, searching):
        command.add_argument("--db", default="books.db")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.command == "load":
        print("loaded", load(given.csv_file, given.db))
        return
    with connect(given.db) as db:
        for book in search(db, given.title, given.author, given.sort, given.limit):
            print(book.id, book.title, book.author, book.year, sep="\t")


main()
