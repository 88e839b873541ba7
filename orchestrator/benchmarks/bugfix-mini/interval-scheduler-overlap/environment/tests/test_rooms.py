import unittest
from datetime import datetime

from rooms import Calendar, Conflict, Interval


def at(start, end):
    return Interval(datetime(2024, 5, 6, start), datetime(2024, 5, 6, end))


class Rooms(unittest.TestCase):
    def test_a_taken_room_is_refused(self):
        calendar = Calendar()
        first = calendar.book("blue", at(9, 11), "Workshop")
        with self.assertRaises(Conflict) as refused:
            calendar.book("blue", at(10, 12), "Interview")
        self.assertEqual(refused.exception.booking, first)
        self.assertEqual(calendar.bookings("blue"), [first])

    def test_rooms_are_apart(self):
        calendar = Calendar()
        calendar.book("blue", at(9, 11), "Workshop")
        calendar.book("green", at(9, 11), "Interview")
        self.assertEqual(calendar.busy("green"), [at(9, 11)])

    def test_free_time_between_bookings(self):
        calendar = Calendar()
        calendar.book("blue", at(9, 10), "Workshop")
        calendar.book("blue", at(12, 18), "Interview")
        self.assertEqual(calendar.free("blue", at(8, 18)), [at(8, 9), at(10, 12)])


if __name__ == "__main__":
    unittest.main()
