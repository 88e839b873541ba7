"""The operations on the stock."""

from .errors import OutOfStock, StockError


class StockService:
    """Keeps levels in a store (get, put, places) and tells listeners what changed."""

    def __init__(self, store):
        self._store = store
        self._listeners = []

    def subscribe(self, listener):
        """Has listener(place, article, level) called after every change."""
        self._listeners.append(listener)

    def level(self, place, article):
        return self._store.get(place, article)

    def total(self, article):
        """Pieces of the article in all places."""
        return sum(self._store.get(place, article) for place in self._store.places())

    def receive(self, place, article, pieces):
        """Adds pieces; returns the new level."""
        _check(pieces)
        return self._change(place, article, pieces)

    def take(self, place, article, pieces):
        """Takes pieces away; returns the new level; raises OutOfStock."""
        _check(pieces)
        return self._change(place, article, -pieces)

    def transfer(self, source, target, article, pieces):
        """Moves pieces from one place to another; raises OutOfStock."""
        _check(pieces)
        if source == target:
            raise StockError("a transfer needs two places")
        self._change(source, article, -pieces)
        self._change(target, article, pieces)

    def _change(self, place, article, difference):
        level = self._store.get(place, article)
        if level + difference < 0:
            raise OutOfStock(place, article, -difference, level)
        self._store.put(place, article, level + difference)
        for listener in self._listeners:
            listener(place, article, level + difference)
        return level + difference


def _check(pieces):
    if pieces <= 0:
        raise StockError(f"{pieces} is no number of pieces")
