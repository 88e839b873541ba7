"""Reads an exported address book into contacts."""

import csv

from .model import COLUMNS, Contact


class ReaderError(Exception):
    """The file is not an address book; the message names the line."""


def read_contacts(path):
    """Returns the contacts of the file, in its order; raises ReaderError."""
    with open(path, encoding="utf-8-sig") as file:
        return list(_contacts(file))


def _contacts(lines):
    delimiter = None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if delimiter is None:
            delimiter = _check_header(number, line)
            continue
        row = next(csv.reader([line], delimiter=delimiter))
        if len(row) != len(COLUMNS):
            raise ReaderError(f"line {number}: expected {len(COLUMNS)} columns, got {len(row)}")
        yield Contact(*(field.strip() for field in row))


def _check_header(number, line):
    delimiter = ";" if ";" in line else ","
    names = tuple(field.strip() for field in next(csv.reader([line], delimiter=delimiter)))
    if names != COLUMNS:
        raise ReaderError(f"line {number}: expected the header {delimiter.join(COLUMNS)}")
    return delimiter
