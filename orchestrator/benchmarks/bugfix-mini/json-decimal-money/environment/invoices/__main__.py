"""The command line."""

import json
import sys

from .load import read_invoice
from .model import InvoiceError
from .totals import amount, money, totals


def main(arguments):
    if len(arguments) != 2 or arguments[0] not in {"total", "lines"}:
        print("usage: python3 -m invoices total|lines FILE", file=sys.stderr)
        return 2
    command, path = arguments
    try:
        invoice = read_invoice(path)
    except (OSError, InvoiceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if command == "total":
        print(json.dumps(totals(invoice)))
    else:
        for line in invoice.lines:
            print(f"{money(amount(line))}  {line.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
