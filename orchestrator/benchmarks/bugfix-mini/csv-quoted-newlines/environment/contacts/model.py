"""What a contact is."""

from dataclasses import dataclass

COLUMNS = ("name", "street", "town", "phone")


@dataclass(frozen=True)
class Contact:
    name: str
    street: str
    town: str
    phone: str
