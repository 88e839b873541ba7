"""What an invoice is."""

from dataclasses import dataclass


class InvoiceError(Exception):
    """The file is not an invoice."""


@dataclass(frozen=True)
class Line:
    text: str
    quantity: float
    price: float
    tax: str  # as the file writes it
    discount: float


@dataclass(frozen=True)
class Invoice:
    number: str
    lines: tuple[Line, ...]
