"""The bookings of all rooms."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from rooms.interval import Interval, gaps, merge


@dataclass(frozen=True)
class Booking:
    room: str
    time: Interval
    title: str


class Conflict(Exception):
    """The room is taken; `booking` is in the way."""

    def __init__(self, booking: Booking) -> None:
        super().__init__(f"{booking.room} is taken by {booking.title!r} until {booking.time.end}")
        self.booking = booking


class Calendar:
    def __init__(self) -> None:
        self._bookings: list[Booking] = []

    def load(self, bookings: Iterable[Booking]) -> None:
        """Takes over the bookings of another calendar, unchecked: they may overlap."""
        self._bookings.extend(bookings)

    def bookings(self, room: str) -> list[Booking]:
        """The bookings of a room by start."""
        return sorted((booking for booking in self._bookings if booking.room == room), key=lambda each: each.time)

    def book(self, room: str, time: Interval, title: str) -> Booking:
        """Adds a booking; raises Conflict if the room is taken for a part of that time."""
        for booking in self.bookings(room):
            if time.overlaps(booking.time):
                raise Conflict(booking)
        made = Booking(room, time, title)
        self._bookings.append(made)
        return made

    def busy(self, room: str) -> list[Interval]:
        """The time a room is taken, as few intervals."""
        return merge(booking.time for booking in self.bookings(room))

    def free(self, room: str, opening: Interval, minutes: int = 1) -> list[Interval]:
        """The gaps of at least `minutes` minutes between the bookings."""
        shortest = timedelta(minutes=minutes)
        return [
            gap for gap in gaps((booking.time for booking in self.bookings(room)), opening) if gap.length >= shortest
        ]
