"""The pages of a wiki, each with its title and its slug."""

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
        self._by_slug = {}

    def __iter__(self):
        return iter(self._by_slug.values())

    def __len__(self):
        return len(self._by_slug)

    def add(self, title, text):
        """Adds a page, or replaces the text of the one that has this title; returns its slug."""
        slug = slugify(title)
        self._by_slug[slug] = Page(title.strip(), slug, text)
        return slug

    def find(self, title):
        """Returns the page of this title, or None."""
        return self._by_slug.get(slugify(title))
