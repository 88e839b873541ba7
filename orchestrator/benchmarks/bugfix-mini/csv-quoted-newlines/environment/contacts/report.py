"""Texts made from contacts."""

from collections import Counter


def listing(contacts):
    return [f"{contact.name}: {contact.street.replace(chr(10), ', ')}, {contact.town}" for contact in contacts]


def stats(contacts):
    towns = Counter(contact.town for contact in contacts)
    lines = [f"contacts: {len(contacts)}"]
    lines += [f"{town}: {count}" for town, count in sorted(towns.items(), key=lambda item: (-item[1], item[0]))]
    return lines


def labels(contacts):
    return ["\n".join((contact.name, contact.street, contact.town, "-" * 20)) for contact in contacts]
