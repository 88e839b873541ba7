"""Hidden tests: what is taken and what is free, and what worked before. Run in the working directory."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from datetime import datetime, timedelta
from itertools import permutations
from pathlib import Path

sys.path.insert(0, os.getcwd())
MIDNIGHT = datetime(2024, 5, 6)


class Case(unittest.TestCase):
    def setUp(self):
        import rooms

        self.rooms = rooms
        self.calendar = rooms.Calendar()

    def at(self, start, end):
        """An interval in hours since midnight."""
        return self.rooms.Interval(MIDNIGHT + timedelta(hours=start), MIDNIGHT + timedelta(hours=end))

    def loaded(self, *times):
        """A calendar with these bookings of room blue, taken over unchecked."""
        calendar = self.rooms.Calendar()
        calendar.load([self.rooms.Booking("blue", self.at(*time), str(time)) for time in times])
        return calendar

    def hours(self, times):
        hour = timedelta(hours=1)
        return [((time.start - MIDNIGHT) / hour, (time.end - MIDNIGHT) / hour) for time in times]

    def busy(self, *times):
        return self.hours(self.loaded(*times).busy("blue"))

    def free(self, *times, opening=(8, 18), minutes=60):
        return self.hours(self.loaded(*times).free("blue", self.at(*opening), minutes))


class Booking(Case):
    def test_back_to_back(self):
        self.calendar.book("blue", self.at(10, 11), "middle")
        self.calendar.book("blue", self.at(11, 12), "after")
        self.calendar.book("blue", self.at(9, 10), "before")
        self.assertEqual([booking.title for booking in self.calendar.bookings("blue")], ["before", "middle", "after"])

    def test_around_another(self):
        inner = self.calendar.book("blue", self.at(10, 11), "inner")
        for time in ((9, 12), (10, 12), (9, 11), (9.5, 11.25)):
            with self.assertRaises(self.rooms.Conflict, msg=time) as refused:
                self.calendar.book("blue", self.at(*time), "outer")
            self.assertEqual(refused.exception.booking, inner)
        self.assertEqual(self.calendar.bookings("blue"), [inner])

    def test_every_way_two_can_lie(self):
        for start in range(8, 14):
            for end in range(start + 1, 15):
                calendar = self.rooms.Calendar()
                calendar.book("blue", self.at(10, 12), "first")
                try:
                    calendar.book("blue", self.at(start, end), "second")
                    accepted = True
                except self.rooms.Conflict:
                    accepted = False
                self.assertEqual(accepted, end <= 10 or start >= 12, (start, end))


class Busy(Case):
    def test_one_within_another(self):
        self.assertEqual(self.busy((9, 12), (10, 11)), [(9, 12)])
        self.assertEqual(self.busy((9, 12), (10, 11), (11.5, 13), (15, 16)), [(9, 13), (15, 16)])
        self.assertEqual(self.busy((9, 10), (9, 12), (9, 11)), [(9, 12)])

    def test_touching_ones_are_joined(self):
        self.assertEqual(self.busy((12, 13), (9, 10), (10, 11)), [(9, 11), (12, 13)])

    def test_the_order_does_not_matter(self):
        for times in permutations([(9, 12), (10, 11), (12, 13), (14, 15)]):
            self.assertEqual(self.busy(*times), [(9, 13), (14, 15)])


class Free(Case):
    def test_after_the_last(self):
        self.assertEqual(self.free((9, 10)), [(8, 9), (10, 18)])
        self.assertEqual(self.free((17, 18)), [(8, 17)])
        self.assertEqual(self.free(), [(8, 18)])

    def test_one_within_another(self):
        self.assertEqual(self.free((9, 17), (10, 11), (12, 13)), [(8, 9), (17, 18)])

    def test_only_the_opening(self):
        self.assertEqual(self.free((5, 9), (17, 20)), [(9, 17)])
        self.assertEqual(self.free((3, 4), (5, 6), (19, 20), (21, 22)), [(8, 18)])
        self.assertEqual(self.free((7, 19)), [])
        self.assertEqual(self.free((6, 8), (18, 19)), [(8, 18)])
        self.assertEqual(self.free((6, 7), (9, 10), (20, 21)), [(8, 9), (10, 18)])

    def test_length(self):
        times = (8, 9), (10, 11), (11.5, 18)
        self.assertEqual(self.free(*times, minutes=60), [(9, 10)])
        self.assertEqual(self.free(*times, minutes=61), [])
        self.assertEqual(self.free(*times, minutes=30), [(9, 10), (11, 11.5)])
        self.assertEqual(self.free((8, 17.5), minutes=31), [])
        self.assertEqual(self.free((8, 17.5), minutes=30), [(17.5, 18)])

    def test_over_midnight(self):
        self.assertEqual(self.free((22, 26), opening=(20, 32), minutes=1), [(20, 22), (26, 32)])


class StillWorks(Case):
    def test_an_interval_ends_after_its_start(self):
        for end in (9, 8):
            with self.assertRaises(ValueError):
                self.at(9, end)

    def test_overlaps_are_refused(self):
        first = self.calendar.book("blue", self.at(9, 11), "first")
        for time in ((9, 11), (10, 12), (8, 10), (9.5, 10.5)):
            with self.assertRaises(self.rooms.Conflict) as refused:
                self.calendar.book("blue", self.at(*time), "second")
            self.assertEqual(refused.exception.booking, first)
        self.assertEqual(self.calendar.book("green", self.at(9, 11), "other").room, "green")
        self.assertEqual(self.calendar.busy("blue"), [self.at(9, 11)])
        self.assertEqual(self.calendar.busy("red"), [])

    def test_command_line(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "monday.json")
            times = [("09:00", "12:00"), ("10:00", "11:00"), ("12:00", "12:30")]
            file.write_text(
                json.dumps(
                    [
                        {"room": "blue", "start": f"2024-05-06T{start}", "end": f"2024-05-06T{end}", "title": start}
                        for start, end in times
                    ]
                )
            )
            command = [sys.executable, "-B", "-m", "rooms", "free", str(file), "blue"]
            ran = subprocess.run(
                [*command, "2024-05-06T08:00", "2024-05-06T18:00", "--minutes", "60"], capture_output=True, text=True
            )
        self.assertEqual(ran.stdout, "2024-05-06 08:00 - 2024-05-06 09:00\n2024-05-06 12:30 - 2024-05-06 18:00\n")


if __name__ == "__main__":
    passed = unittest.main(argv=sys.argv[:1], exit=False).result.wasSuccessful()
    Path(sys.argv[1]).write_text("1\n" if passed else "0\n")
