"""Adds up an invoice."""


def amount(line):
    """The amount of a line."""
    return line.quantity * line.price * (1 - line.discount / 100)


def totals(invoice):
    """Returns {"net": text, "tax": {rate: text}, "total": text}."""
    net = sum(amount(line) for line in invoice.lines)
    taxes = {}
    for line in sorted(invoice.lines, key=lambda line: float(line.tax)):
        taxes[line.tax] = taxes.get(line.tax, 0) + round(amount(line) * float(line.tax) / 100, 2)
    return {
        "net": money(net),
        "tax": {rate: money(tax) for rate, tax in taxes.items()},
        "total": money(net + sum(taxes.values())),
    }


def money(value):
    """An amount as text, with two digits after the point."""
    return f"{round(value, 2):.2f}"
