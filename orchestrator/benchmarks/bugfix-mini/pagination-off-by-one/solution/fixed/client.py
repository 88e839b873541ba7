"""Walks through the pages of the feed."""

import itertools

from .api import Busy

TRIES = 3


class Client:
    def __init__(self, api, page_size=20):
        self._api = api
        self._page_size = page_size

    def iter_items(self, kind=None):
        """Yields the items, newest first.

        Follows the server's cursors: offsets shift whenever something is added or deleted, and the server may give
        shorter pages than asked for.
        """
        page = self._get(kind=kind)
        yield from page["items"]
        while page["next"] is not None:
            page = self._get(cursor=page["next"], kind=kind)
            yield from page["items"]

    def first(self, count, kind=None):
        """Returns the newest items, at most count."""
        return list(itertools.islice(self.iter_items(kind), count))

    def _get(self, **query):
        for _ in range(TRIES - 1):
            try:
                return self._api.list(limit=self._page_size, **query)
            except Busy:
                continue
        return self._api.list(limit=self._page_size, **query)
