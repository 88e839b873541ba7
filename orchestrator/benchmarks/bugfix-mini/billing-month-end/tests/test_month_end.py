"""Hidden tests: month-end charges, and what worked before. Run in the working directory."""

import os
import subprocess
import sys
import unittest
from datetime import date, timedelta
from pathlib import Path

sys.path.insert(0, os.getcwd())


def day(text):
    return date.fromisoformat(text)


class Case(unittest.TestCase):
    def setUp(self):
        import billing

        self.billing = billing

    def subscription(self, plan, start, ended=None):
        return self.billing.Subscription("ada", self.billing.PLANS[plan], day(start), ended and day(ended))

    def charges(self, plan, start, until, ended=None):
        return [str(each) for each in self.billing.renewals(self.subscription(plan, start, ended), day(until))]

    def periods(self, plan, start, until, ended=None):
        made = self.billing.invoices(self.subscription(plan, start, ended), day(until))
        return [(str(each.first_day), str(each.last_day)) for each in made]


class MonthEnd(Case):
    def test_monthly_from_the_31st(self):
        self.assertEqual(
            self.charges("monthly", "2023-01-31", "2023-07-31"),
            ["2023-02-28", "2023-03-31", "2023-04-30", "2023-05-31", "2023-06-30", "2023-07-31"],
        )

    def test_monthly_from_the_30th_across_a_leap_february(self):
        self.assertEqual(
            self.charges("monthly", "2023-12-30", "2024-04-30"),
            ["2024-01-30", "2024-02-29", "2024-03-30", "2024-04-30"],
        )

    def test_monthly_from_the_29th(self):
        self.assertEqual(self.charges("monthly", "2023-01-29", "2023-03-31"), ["2023-02-28", "2023-03-29"])

    def test_quarterly_from_the_end_of_november(self):
        self.assertEqual(
            self.charges("quarterly", "2022-11-30", "2023-11-30"),
            ["2023-02-28", "2023-05-30", "2023-08-30", "2023-11-30"],
        )

    def test_yearly_from_a_leap_day(self):
        self.assertEqual(
            self.charges("yearly", "2024-02-29", "2028-12-31"),
            ["2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"],
        )

    def test_next_renewal(self):
        monthly = self.subscription("monthly", "2023-01-31")
        answers = {
            "2023-01-30": "2023-01-31",
            "2023-01-31": "2023-02-28",
            "2023-02-28": "2023-03-31",
            "2023-03-28": "2023-03-31",
            "2023-03-31": "2023-04-30",
            "2024-02-28": "2024-02-29",
        }
        found = {after: str(self.billing.next_renewal(monthly, day(after))) for after in answers}
        self.assertEqual(found, answers)

    def test_next_renewal_of_a_cancelled_subscription(self):
        cancelled = self.subscription("monthly", "2023-01-31", ended="2023-03-30")
        self.assertEqual(self.billing.next_renewal(cancelled, day("2023-02-01")), day("2023-02-28"))
        self.assertIsNone(self.billing.next_renewal(cancelled, day("2023-02-28")))

    def test_periods_end_the_day_before_the_next_charge(self):
        self.assertEqual(
            self.periods("monthly", "2023-01-31", "2023-04-30"),
            [
                ("2023-01-31", "2023-02-27"),
                ("2023-02-28", "2023-03-30"),
                ("2023-03-31", "2023-04-29"),
                ("2023-04-30", "2023-05-30"),
            ],
        )

    def test_a_cancelled_month_end_subscription(self):
        self.assertEqual(
            self.periods("monthly", "2023-01-31", "2023-12-31", ended="2023-03-30"),
            [("2023-01-31", "2023-02-27"), ("2023-02-28", "2023-03-30")],
        )

    def test_periods_join_whatever_the_start(self):
        for plan in ("monthly", "quarterly", "yearly"):
            for offset in range(61):
                start = day("2023-12-31") + timedelta(days=offset)
                made = self.billing.invoices(self.subscription(plan, str(start)), start + timedelta(days=1500))
                for before, after in zip(made, made[1:]):
                    self.assertEqual(before.last_day + timedelta(days=1), after.first_day, (plan, start))
                    following = after.first_day + timedelta(days=1)
                    self.assertTrue(after.first_day.day == start.day or following.day == 1, (plan, start))

    def test_command_line(self):
        ran = subprocess.run(
            [sys.executable, "-B", "-m", "billing", "invoices", "--plan", "monthly"]
            + ["--start", "2023-01-31", "--until", "2023-03-31"],
            capture_output=True,
            text=True,
        )
        self.assertEqual(
            ran.stdout.splitlines(),
            ["1 2023-01-31 2023-02-27 9.00", "2 2023-02-28 2023-03-30 9.00", "3 2023-03-31 2023-04-29 9.00"],
        )


class StillWorks(Case):
    def test_ordinary_days(self):
        self.assertEqual(self.charges("monthly", "2024-11-15", "2025-01-15"), ["2024-12-15", "2025-01-15"])
        self.assertEqual(self.charges("monthly", "2023-01-28", "2023-03-28"), ["2023-02-28", "2023-03-28"])
        self.assertEqual(self.charges("yearly", "2024-02-28", "2026-03-01"), ["2025-02-28", "2026-02-28"])

    def test_invoices_are_numbered_and_priced(self):
        made = self.billing.invoices(self.subscription("quarterly", "2024-01-10"), day("2024-07-10"))
        self.assertEqual(
            [(each.number, each.customer, each.cents) for each in made], [(n, "ada", 2400) for n in (1, 2, 3)]
        )

    def test_nothing_before_the_start(self):
        self.assertEqual(self.periods("monthly", "2024-05-01", "2024-04-30"), [])

    def test_cancelled_on_a_charge_day(self):
        self.assertEqual(
            self.periods("monthly", "2024-01-15", "2024-12-31", ended="2024-02-15"),
            [("2024-01-15", "2024-02-14"), ("2024-02-15", "2024-02-15")],
        )


if __name__ == "__main__":
    passed = unittest.main(argv=sys.argv[:1], exit=False).result.wasSuccessful()
    Path(sys.argv[1]).write_text("1\n" if passed else "0\n")
