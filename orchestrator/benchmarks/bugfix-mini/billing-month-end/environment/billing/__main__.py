"""Command line: `python3 -m billing invoices …` and `python3 -m billing next …`."""

import argparse
from datetime import date

from billing.plans import PLANS
from billing.schedule import Subscription, invoices, next_renewal


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="billing")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("invoices", "next"):
        command = commands.add_parser(name)
        command.add_argument("--plan", choices=sorted(PLANS), required=True)
        command.add_argument("--start", type=date.fromisoformat, required=True)
        command.add_argument("--ended", type=date.fromisoformat)
        command.add_argument("--customer", default="customer")
    commands.choices["invoices"].add_argument("--until", type=date.fromisoformat, required=True)
    commands.choices["next"].add_argument("--after", type=date.fromisoformat, required=True)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    subscription = Subscription(given.customer, PLANS[given.plan], given.start, given.ended)
    if given.command == "next":
        print(next_renewal(subscription, given.after) or "never")
        return
    for invoice in invoices(subscription, given.until):
        print(invoice.number, invoice.first_day, invoice.last_day, f"{invoice.cents / 100:.2f}")


main()
