"""Adds up an invoice."""

from decimal import ROUND_HALF_UP, Decimal, localcontext

CENT = Decimal("0.01")
# Quantity, price and discount multiplied may have far more digits than the usual context keeps.
DIGITS = 100


def amount(line):
    """The amount of a line, in whole cents."""
    with localcontext() as context:
        context.prec = DIGITS
        return _cents(line.quantity * line.price * (100 - line.discount) / 100)


def totals(invoice):
    """Returns {"net": text, "tax": {rate: text}, "total": text}."""
    with localcontext() as context:
        context.prec = DIGITS
        bases = {}
        names = {}
        for line in invoice.lines:
            rate = Decimal(line.tax)
            names.setdefault(rate, line.tax)
            bases[rate] = bases.get(rate, 0) + amount(line)
        net = sum(bases.values())
        taxes = {rate: _cents(base * rate / 100) for rate, base in sorted(bases.items())}
        return {
            "net": money(net),
            "tax": {names[rate]: money(tax) for rate, tax in taxes.items()},
            "total": money(net + sum(taxes.values())),
        }


def money(value):
    """An amount in whole cents as text, with two digits after the point."""
    return f"{value:.2f}"


def _cents(value):
    # ROUND_HALF_UP goes away from zero on both sides; adding zero turns -0.00 into 0.00.
    return value.quantize(CENT, ROUND_HALF_UP) + 0
