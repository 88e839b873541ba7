"""Amounts of money as whole cents."""

import re

AMOUNT = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)\.(\d\d)")


def parse_cents(text: str) -> int:
    """Cents of `1,234.50`, `-1234.50` or `(1,234.50)`, the last two of which are negative."""
    plain = text.strip()
    negative = False
    if plain.startswith("(") and plain.endswith(")"):
        plain, negative = plain[1:-1], True
    elif plain.startswith("-"):
        plain, negative = plain[1:], True
    match = AMOUNT.fullmatch(plain)
    if not match:
        raise ValueError(f"not an amount: {text!r}")
    cents = int(match[1].replace(",", "")) * 100 + int(match[2])
    return -cents if negative else cents
