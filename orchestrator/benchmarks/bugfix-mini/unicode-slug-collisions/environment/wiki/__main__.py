"""The command line."""

import argparse

from .build import read_pages, write_pages


def main():
    parser = argparse.ArgumentParser(prog="wiki")
    parser.add_argument("command", choices=["build"])
    parser.add_argument("folder")
    parser.add_argument("--out")
    options = parser.parse_args()
    pages = read_pages(options.folder)
    for page in pages:
        print(f"{page.title} -> {page.slug}")
    if options.out:
        write_pages(pages, options.out)


if __name__ == "__main__":
    main()
