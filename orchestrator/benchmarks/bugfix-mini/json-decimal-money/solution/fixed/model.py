"""What an invoice is."""

from dataclasses import dataclass
from decimal import Decimal


class InvoiceError(Exception):
    """The file is not an invoice."""


@dataclass(frozen=True)
class Line:
    text: str
    quantity: Decimal
    price: Decimal
    tax: str  # as the file writes it
    discount: Decimal


@dataclass(frozen=True)
class Invoice:
    number: str
    lines: tuple[Line, ...]
