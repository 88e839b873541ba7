"""Waiting for a thing to change: one event per thing and change, held by nobody but its waiters.

Take the event first, then look at the thing, then wait for the event: a change between the looks is never missed.
Why not a condition per thing: it would have to be removed again; here an event goes when its last waiter does.
"""

from collections.abc import Hashable
from weakref import WeakValueDictionary

import anyio


class ChangeEvents:
    """For the event loop's thread only."""

    def __init__(self) -> None:
        self._events: WeakValueDictionary[Hashable, anyio.Event] = WeakValueDictionary()

    def next(self, key: Hashable) -> anyio.Event:
        """The event of the thing's next change."""
        event = self._events.get(key)
        if event is None:
            event = self._events[key] = anyio.Event()
        return event

    def announce(self, key: Hashable) -> None:
        """Wake all who wait for this thing."""
        event = self._events.pop(key, None)
        if event is not None:
            event.set()
