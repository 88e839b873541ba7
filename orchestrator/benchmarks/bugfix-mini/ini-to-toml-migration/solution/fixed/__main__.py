"""The command line."""

import argparse
import sys
from pathlib import Path

from .ini import IniError, parse, parse_document
from .listing import find, show
from .toml import ConversionError, to_toml


def main():
    parser = argparse.ArgumentParser(prog="confkit")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("show", "get", "to-toml"):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        if name == "get":
            command.add_argument("section")
            command.add_argument("key")
        if name == "to-toml":
            command.add_argument("--out", type=Path)
            command.add_argument("--force", action="store_true")
    options = parser.parse_args()
    try:
        return run(options)
    except (OSError, UnicodeDecodeError, IniError, ConversionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(options):
    text = options.file.read_text(encoding="utf-8")
    if options.command == "show":
        print("\n".join(show(parse(text))))
        return 0
    if options.command == "get":
        lines = find(parse(text), options.section, options.key)
        if lines is None:
            print(f"error: no {options.key} in [{options.section}]", file=sys.stderr)
            return 1
        print("\n".join(lines))
        return 0
    return convert(text, options.out, options.force)


def convert(text, out, force):
    converted = to_toml(parse_document(text))
    if out is None:
        sys.stdout.buffer.write(converted.encode())
        return 0
    with out.open("w" if force else "x", encoding="utf-8", newline="\n") as file:
        file.write(converted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
