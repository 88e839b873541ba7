"""The pages of a wiki, each with its title and its slug."""

import itertools
import unicodedata
from dataclasses import dataclass

from .slug import slugify


@dataclass
class Page:
    title: str
    slug: str
    text: str


class Pages:
    """Pages in the order in which they were added."""

    def __init__(self):
        self._by_key = {}
        self._slugs = set()

    def __iter__(self):
        return iter(self._by_key.values())

    def __len__(self):
        return len(self._by_key)

    def add(self, title, text):
        """Adds a page, or replaces the text of the one that has this title; returns its slug."""
        page = self.find(title)
        if page is None:
            page = Page(title.strip(), self._free_slug(title), text)
            self._by_key[_key(title)] = page
            self._slugs.add(page.slug)
        page.text = text
        return page.slug

    def find(self, title):
        """Returns the page of this title, or None."""
        return self._by_key.get(_key(title))

    def _free_slug(self, title):
        slug = slugify(title)
        if slug not in self._slugs:
            return slug
        return next(name for number in itertools.count(2) if (name := f"{slug}-{number}") not in self._slugs)


def _key(title):
    return " ".join(unicodedata.normalize("NFC", title).split())
