import unittest
from datetime import date

from takings import zones
from takings.report import daily
from takings.sales import sale


class OrdinaryDays(unittest.TestCase):
    def test_a_sale_after_local_midnight_is_the_next_day(self):
        sales = [sale("2024-01-14T23:30:00Z", 100), sale("2024-01-14T22:30:00Z", 20)]
        days = daily(sales, zones.load("Europe/Berlin"), date(2024, 1, 14), date(2024, 1, 15))
        self.assertEqual([(day.cents, day.sales, day.hours) for day in days], [(20, 1, 24), (100, 1, 24)])


if __name__ == "__main__":
    unittest.main()
