import unittest
from datetime import date

from billing import PLANS, Subscription, invoices, next_renewal, renewals


class MidMonth(unittest.TestCase):
    def test_renews_on_the_same_day(self):
        subscription = Subscription("ada", PLANS["monthly"], date(2024, 1, 15))
        days = list(renewals(subscription, date(2024, 4, 15)))
        self.assertEqual(days, [date(2024, 2, 15), date(2024, 3, 15), date(2024, 4, 15)])

    def test_next_renewal_is_later_than_the_day_asked_about(self):
        subscription = Subscription("ada", PLANS["quarterly"], date(2024, 1, 15))
        self.assertEqual(next_renewal(subscription, date(2024, 4, 15)), date(2024, 7, 15))

    def test_a_cancelled_subscription_is_cut_short(self):
        subscription = Subscription("ada", PLANS["monthly"], date(2024, 1, 15), ended=date(2024, 2, 20))
        periods = [(i.first_day, i.last_day) for i in invoices(subscription, date(2024, 12, 31))]
        self.assertEqual(
            periods,
            [(date(2024, 1, 15), date(2024, 2, 14)), (date(2024, 2, 15), date(2024, 2, 20))],
        )


if __name__ == "__main__":
    unittest.main()
