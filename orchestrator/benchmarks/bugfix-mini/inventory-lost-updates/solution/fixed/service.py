"""The operations on the stock."""

import threading

from .errors import OutOfStock, StockError


class StockService:
    """Keeps levels in a store (get, put, places) and tells listeners what changed.

    One lock for everything: with one per place, opposite transfers would wait for each other, and total would see
    pieces on their way.
    """

    def __init__(self, store):
        self._store = store
        self._listeners = []
        self._lock = threading.RLock()

    def subscribe(self, listener):
        """Has listener(place, article, level) called after every change."""
        with self._lock:
            self._listeners.append(listener)

    def level(self, place, article):
        with self._lock:
            return self._store.get(place, article)

    def total(self, article):
        """Pieces of the article in all places."""
        with self._lock:
            return sum(self._store.get(place, article) for place in self._store.places())

    def receive(self, place, article, pieces):
        """Adds pieces; returns the new level."""
        _check(pieces)
        return self._change((place, article, pieces))[0]

    def take(self, place, article, pieces):
        """Takes pieces away; returns the new level; raises OutOfStock."""
        _check(pieces)
        return self._change((place, article, -pieces))[0]

    def transfer(self, source, target, article, pieces):
        """Moves pieces from one place to another; raises OutOfStock."""
        _check(pieces)
        if source == target:
            raise StockError("a transfer needs two places")
        self._change((source, article, -pieces), (target, article, pieces))

    def _change(self, *changes):
        with self._lock:
            levels = [self._new_level(*change) for change in changes]
            for (place, article, _), level in zip(changes, levels, strict=True):
                self._store.put(place, article, level)
            listeners = list(self._listeners)
        for (place, article, _), level in zip(changes, levels, strict=True):
            for listener in listeners:
                listener(place, article, level)
        return levels

    def _new_level(self, place, article, difference):
        level = self._store.get(place, article)
        if level + difference < 0:
            raise OutOfStock(place, article, -difference, level)
        return level + difference


def _check(pieces):
    if pieces <= 0:
        raise StockError(f"{pieces} is no number of pieces")
