"""Reads invoices."""

import json
import math

from .model import Invoice, InvoiceError, Line


def read_invoice(path):
    """Returns the invoice in a file; raises InvoiceError."""
    with open(path, encoding="utf-8") as file:
        try:
            data = json.load(file)
        except ValueError as error:
            raise InvoiceError(f"{path}: {error}") from error
    if not isinstance(data, dict) or not data.get("lines"):
        raise InvoiceError(f"{path}: no lines")
    return Invoice(str(data.get("number", "")), tuple(_line(line) for line in data["lines"]))


def _line(line):
    for key in ("quantity", "price", "tax"):
        if key not in line:
            raise InvoiceError(f"a line has no {key}")
    _number(line, "tax")
    return Line(
        text=str(line.get("text", "")),
        quantity=_number(line, "quantity"),
        price=_number(line, "price"),
        tax=str(line["tax"]),
        discount=_number(line, "discount") if "discount" in line else 0.0,
    )


def _number(line, key):
    value = line[key]
    if isinstance(value, bool):
        raise InvoiceError(f"{key} is no number: {value}")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InvoiceError(f"{key} is no number: {value}") from error
    if not math.isfinite(number):
        raise InvoiceError(f"{key} is no number: {value}")
    return number
