"""Mirrors a feed of 41 items."""

from .api import ItemsApi
from .client import Client
from .mirror import mirror


def main():
    api = ItemsApi()
    for number in range(41):
        api.add(f"item {number}")
    added, _ = mirror(Client(api, page_size=20), {})
    print(f"41 items in the feed, {added} in the mirror")


if __name__ == "__main__":
    main()
