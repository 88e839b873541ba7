"""Reads an exported address book into contacts."""

import csv

from .model import COLUMNS, Contact


class ReaderError(Exception):
    """The file is not an address book; the message names the line."""


def read_contacts(path):
    """Returns the contacts of the file, in its order; raises ReaderError."""
    with open(path, encoding="utf-8-sig") as file:
        return list(_contacts(file))


class _Lines:
    """Hands lines to a csv reader; drops comments and empty lines, but only where a record may start."""

    def __init__(self, lines):
        self._numbered = enumerate(lines, start=1)
        self.record_line = None

    def __iter__(self):
        return self

    def __next__(self):
        for number, line in self._numbered:
            if self.record_line is None:
                if not line.strip() or line.startswith("#"):
                    continue
                self.record_line = number
            return line
        if self.record_line is not None:
            raise ReaderError(f"line {self.record_line}: unclosed quote")
        raise StopIteration


def _contacts(file):
    lines = _Lines(file)
    header = next(lines, None)
    if header is None:
        return
    delimiter = _check_header(lines.record_line, header)
    lines.record_line = None
    for row in csv.reader(lines, delimiter=delimiter):
        if len(row) != len(COLUMNS):
            raise ReaderError(f"line {lines.record_line}: expected {len(COLUMNS)} columns, got {len(row)}")
        yield Contact(*(field.strip() for field in row))
        lines.record_line = None


def _check_header(number, line):
    delimiter = ";" if ";" in line else ","
    names = tuple(field.strip() for field in next(csv.reader([line], delimiter=delimiter)))
    if names != COLUMNS:
        raise ReaderError(f"line {number}: expected the header {delimiter.join(COLUMNS)}")
    return delimiter
