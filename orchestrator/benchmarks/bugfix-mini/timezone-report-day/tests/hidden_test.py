import importlib
import os
import subprocess
import sys
import tempfile
import unittest
from datetime import UTC, date, datetime, timedelta

sys.path.insert(0, os.getcwd())


class ReportCase(unittest.TestCase):
    def setUp(self):
        self.report = importlib.import_module("takings.report")
        self.sales = importlib.import_module("takings.sales")
        self.zones = importlib.import_module("takings.zones")

    def days(self, zone, first, last, *sales):
        made = [self.sales.sale(at, cents) for at, cents in sales]
        days = self.report.daily(made, self.zones.load(zone), date.fromisoformat(first), date.fromisoformat(last))
        return [(str(day.date), day.hours, day.sales, day.cents) for day in days]


class ClockChanges(ReportCase):
    def test_berlin_in_spring(self):
        self.assertEqual(
            self.days(
                "Europe/Berlin",
                "2024-03-30",
                "2024-04-01",
                ("2024-03-30T22:59:59Z", 1),
                ("2024-03-30T23:00:00Z", 20),
                ("2024-03-31T21:59:59Z", 300),
                ("2024-03-31T22:00:00Z", 4000),
                ("2024-04-01T21:59:59Z", 50000),
                ("2024-04-01T22:00:00Z", 600000),
            ),
            [("2024-03-30", 24, 1, 1), ("2024-03-31", 23, 2, 320), ("2024-04-01", 24, 2, 54000)],
        )

    def test_berlin_in_autumn(self):
        self.assertEqual(
            self.days(
                "Europe/Berlin",
                "2024-10-26",
                "2024-10-28",
                ("2024-10-26T22:00:00Z", 1),
                ("2024-10-27T22:59:59Z", 20),
                ("2024-10-27T23:00:00Z", 300),
                ("2024-10-28T23:00:00Z", 4000),
                ("2024-10-27T00:30:00Z", 50000),
                ("2024-10-27T01:30:00Z", 600000),
            ),
            [("2024-10-26", 24, 0, 0), ("2024-10-27", 25, 4, 650021), ("2024-10-28", 24, 1, 300)],
        )

    def test_a_range_that_is_one_long_day(self):
        self.assertEqual(
            self.days(
                "America/New_York",
                "2024-11-03",
                "2024-11-03",
                ("2024-11-03T03:59:59Z", 1),
                ("2024-11-03T04:00:00Z", 20),
                ("2024-11-04T04:30:00Z", 300),
                ("2024-11-04T05:00:00Z", 4000),
            ),
            [("2024-11-03", 25, 2, 320)],
        )

    def test_a_range_that_is_one_short_day(self):
        self.assertEqual(
            self.days(
                "America/New_York",
                "2024-03-10",
                "2024-03-10",
                ("2024-03-11T03:59:00Z", 1),
                ("2024-03-11T04:30:00Z", 20),
            ),
            [("2024-03-10", 23, 1, 1)],
        )

    def test_beirut_changes_at_midnight(self):
        self.assertEqual(
            self.days(
                "Asia/Beirut",
                "2024-03-30",
                "2024-04-01",
                ("2024-03-30T21:59:59Z", 1),
                ("2024-03-30T22:00:00Z", 20),
                ("2024-03-31T20:59:59Z", 300),
                ("2024-03-31T21:00:00Z", 4000),
            ),
            [("2024-03-30", 24, 1, 1), ("2024-03-31", 23, 2, 320), ("2024-04-01", 24, 1, 4000)],
        )
        self.assertEqual(
            self.days(
                "Asia/Beirut",
                "2024-10-26",
                "2024-10-27",
                ("2024-10-26T20:30:00Z", 1),
                ("2024-10-26T21:30:00Z", 20),
                ("2024-10-26T22:00:00Z", 300),
            ),
            [("2024-10-26", 25, 2, 21), ("2024-10-27", 24, 1, 300)],
        )

    def test_lord_howe_changes_by_half_an_hour(self):
        self.assertEqual(
            self.days(
                "Australia/Lord_Howe",
                "2024-04-06",
                "2024-04-08",
                ("2024-04-07T13:29:00Z", 1),
                ("2024-04-07T13:30:00Z", 20),
            ),
            [("2024-04-06", 24, 0, 0), ("2024-04-07", 24.5, 1, 1), ("2024-04-08", 24, 1, 20)],
        )
        self.assertEqual(
            self.days(
                "Australia/Lord_Howe",
                "2024-10-06",
                "2024-10-06",
                ("2024-10-06T12:59:00Z", 1),
                ("2024-10-06T13:00:00Z", 20),
            ),
            [("2024-10-06", 23.5, 1, 1)],
        )

    def test_hourly_sales_are_counted_once(self):
        for zone in ("Europe/London", "Asia/Beirut", "America/New_York"):
            for begin, last, hours in (("2024-03-05", "2024-04-04", 23), ("2024-10-20", "2024-11-10", 25)):
                start = datetime.fromisoformat(begin).replace(tzinfo=UTC) - timedelta(days=2)
                sales = [((start + timedelta(hours=hour)).isoformat(), 1) for hour in range(24 * 36)]
                days = self.days(zone, begin, last, *sales)
                self.assertEqual([day[3] for day in days], [day[1] for day in days])
                self.assertEqual([day[1] for day in days if day[1] != 24], [hours])


class OrdinaryDays(ReportCase):
    def test_zones_without_clock_changes(self):
        self.assertEqual(
            self.days(
                "Asia/Kolkata", "2024-03-30", "2024-04-01", ("2024-03-31T18:29:59Z", 1), ("2024-03-31T18:30:00Z", 20)
            ),
            [("2024-03-30", 24, 0, 0), ("2024-03-31", 24, 1, 1), ("2024-04-01", 24, 1, 20)],
        )
        self.assertEqual(
            self.days("UTC", "2024-02-29", "2024-02-29", ("2024-02-29T23:59:59Z", 7)), [("2024-02-29", 24, 1, 7)]
        )

    def test_offsets_and_any_order(self):
        self.assertEqual(
            self.days(
                "Europe/Berlin",
                "2024-07-01",
                "2024-07-02",
                ("2024-07-02T01:00:00+02:00", 1),
                ("2024-07-01T17:00:00-05:00", 20),
                ("2024-07-01T23:30:00+02:00", 300),
            ),
            [("2024-07-01", 24, 1, 300), ("2024-07-02", 24, 2, 21)],
        )

    def test_an_empty_range(self):
        self.assertEqual(self.days("UTC", "2024-07-02", "2024-07-01", ("2024-07-01T12:00:00Z", 1)), [])


class Command(ReportCase):
    def test_the_example_of_the_ticket(self):
        lines = (
            '{"at": "2024-03-30T10:00:00Z", "cents": 1200}',
            '{"at": "2024-03-31T09:15:00Z", "cents": 5000}',
            '{"at": "2024-03-31T22:30:00Z", "cents": 750}',
            '{"at": "2024-04-01T08:00:00+02:00", "cents": 800}',
        )
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write("\n".join(lines))
            file.flush()
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "takings",
                    file.name,
                    "--zone",
                    "Europe/Berlin",
                    "--from",
                    "2024-03-30",
                    "--to",
                    "2024-04-01",
                ],
                capture_output=True,
                text=True,
                check=False,
            )
        self.assertEqual(
            done.stdout.split("\n"),
            ["2024-03-30  24 h      12.00", "2024-03-31  23 h      50.00", "2024-04-01  24 h      15.50", ""],
        )


if __name__ == "__main__":
    unittest.main(verbosity=2)
