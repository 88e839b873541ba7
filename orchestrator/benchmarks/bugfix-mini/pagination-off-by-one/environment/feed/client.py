"""Walks through the pages of the feed."""

from .api import Busy

TRIES = 3


class Client:
    def __init__(self, api, page_size=20):
        self._api = api
        self._page_size = page_size

    def iter_items(self, kind=None):
        """Yields the items, newest first."""
        page = self._get(offset=0, kind=kind)
        yield from page["items"]
        for offset in range(self._page_size, page["total"] - 1, self._page_size):
            yield from self._get(offset=offset, kind=kind)["items"]

    def first(self, count, kind=None):
        """Returns the newest items, at most count."""
        items = []
        for item in self.iter_items(kind):
            if len(items) == count:
                break
            items.append(item)
        return items

    def _get(self, **query):
        for _ in range(TRIES - 1):
            try:
                return self._api.list(limit=self._page_size, **query)
            except Busy:
                continue
        return self._api.list(limit=self._page_size, **query)
