"""Bookings of meeting rooms."""

from rooms.calendar import Booking, Calendar, Conflict
from rooms.interval import Interval

__all__ = ["Booking", "Calendar", "Conflict", "Interval"]
