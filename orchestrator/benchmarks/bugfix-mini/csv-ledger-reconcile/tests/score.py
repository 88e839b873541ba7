"""Scores `ledger reconcile`: a share for each part of the rules, times the share of what worked before and still does.

Prints one number, last. What the program prints is kept away from that output.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

BANK_HEADING, BOOKS_HEADING = "Date,Amount,Reference,Text", "date,ref,debit,credit,memo"


class Ledger:
    def __init__(self, folder):
        self.bank, self.books = folder / "bank.csv", folder / "books.csv"

    def run(self, *arguments):
        """Exit status of the program, run in this process (a process for each would be slow)."""
        out, err = io.StringIO(), io.StringIO()
        sys.argv = ["ledger", *map(str, arguments)]
        status = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_module("ledger", run_name="__main__", alter_sys=True)
            except SystemExit as ended:
                status = ended.code or 0
        self.output, self.errors = out.getvalue(), err.getvalue()
        return status

    def reconcile(self, bank, books, *options):
        """The report on entries given as (day of May 2024, amount, reference)."""
        write_bank(self.bank, bank)
        write_books(self.books, books)
        self.status = self.run("reconcile", self.bank, self.books, *options)
        return json.loads(self.output)


def write_bank(path, entries):
    lines = [f'{day:02}.05.2024,"{amount}",{reference},"a, b"' for day, amount, reference in entries]
    path.write_text("\n".join([BANK_HEADING, *lines]) + "\n")


def write_books(path, entries):
    lines = []
    for day, amount, reference in entries:
        sides = f",{amount[1:]}" if amount.startswith("-") else f"{amount},"
        lines.append(f"2024-05-{day:02},{reference},{sides},memo")
    path.write_text("\n".join([BOOKS_HEADING, *lines]) + "\n")


def pairs(report):
    return report["matched"], [pair[:2] for pair in report["differences"]], report["only_bank"], report["only_books"]


def equal_references(ledger):
    report = ledger.reconcile(
        [(1, "5.00", "A-1"), (2, "6.00", " a-2 "), (3, "(7.00)", "A-3")],
        [(20, "-7.00", "a-3"), (1, "5.00", "A-1 "), (2, "6.00", "A-2")],
    )
    assert pairs(report) == ([[1, 2], [2, 3], [3, 1]], [], [], [])
    assert report["balance"] == "0.00" and ledger.status == 0


def entries_of_one_side(ledger):
    report = ledger.reconcile(
        [(1, "5.00", "A"), (2, "6.00", "B")], [(1, "6.00", "C"), (2, "6.00", "B"), (3, "6.00", "D")]
    )
    assert pairs(report) == ([[2, 2]], [], [1], [1, 3]) and ledger.status == 1
    assert pairs(ledger.reconcile([], [(1, "6.00", "C")])) == ([], [], [], [1]) and ledger.status == 1
    assert pairs(ledger.reconcile([(1, "6.00", "")], [])) == ([], [], [1], []) and ledger.status == 1


def other_amounts(ledger):
    report = ledger.reconcile(
        [(1, "1,000.10", "A"), (2, "5.00", "B"), (3, "(2.00)", "C"), (4, "1.00", "D")],
        [(1, "-2.50", "C"), (2, "1000.00", "A"), (28, "6.05", "B"), (4, "1.00", "D")],
    )
    assert report["differences"] == [[1, 2, "0.10"], [2, 3, "-1.05"], [3, 1, "0.50"]]
    assert (report["matched"], report["only_bank"], report["only_books"]) == ([[4, 4]], [], [])
    assert ledger.status == 1


def large_sums(ledger):
    report = ledger.reconcile(
        [(1, "(90,071,992,547,409.93)", "A"), (1, "0.10", "B")], [(1, "0.20", "B"), (1, "0.10", "C")]
    )
    assert report["balance"] == "-90071992547410.13"
    assert report["differences"] == [[2, 1, "-0.10"]]
    assert ledger.reconcile([(1, "0.30", "A")], [(1, "0.10", "A"), (1, "0.20", "B")])["balance"] == "0.00"
    assert ledger.status == 1


def one_without_reference(ledger):
    report = ledger.reconcile(
        [(5, "5.00", ""), (5, "6.00", "X"), (5, "7.00", "  "), (5, "8.00", "Y"), (5, "(9.00)", "")],
        [(6, "5.00", "P"), (7, "6.00", ""), (8, "7.00", ""), (5, "8.00", "Z"), (5, "9.00", "")],
    )
    assert pairs(report) == ([[1, 1], [2, 2], [3, 3]], [], [4, 5], [4, 5])


def the_number_of_days(ledger):
    bank, books = [(10, "5.00", "")], [(13, "5.00", "")]
    assert pairs(ledger.reconcile(bank, books)) == ([[1, 1]], [], [], []) and ledger.status == 0
    assert pairs(ledger.reconcile(books, bank)) == ([[1, 1]], [], [], [])
    assert pairs(ledger.reconcile(bank, books, "--days", "2")) == ([], [], [1], [1])
    assert pairs(ledger.reconcile(bank, bank, "--days", "0")) == ([[1, 1]], [], [], [])
    assert pairs(ledger.reconcile(bank, [(14, "5.00", "")])) == ([], [], [1], [1])
    assert pairs(ledger.reconcile(bank, [(28, "5.00", "")], "--days", "30")) == ([[1, 1]], [], [], [])


def the_nearest_day(ledger):
    report = ledger.reconcile(
        [(10, "5.00", ""), (11, "5.00", "")], [(13, "5.00", ""), (12, "5.00", ""), (9, "5.00", "")]
    )
    assert pairs(report) == ([[1, 3], [2, 2]], [], [], [1])
    report = ledger.reconcile([(10, "5.00", ""), (10, "5.00", "")], [(12, "5.00", "P"), (8, "5.00", "")])
    assert pairs(report) == ([[1, 1], [2, 2]], [], [], [])


def references_come_first(ledger):
    report = ledger.reconcile([(10, "5.00", ""), (1, "5.00", "A")], [(10, "5.00", "A")])
    assert pairs(report) == ([[2, 1]], [], [1], [])
    report = ledger.reconcile([(10, "5.00", ""), (1, "6.00", "A")], [(10, "5.00", "A"), (1, "6.00", "")])
    assert pairs(report) == ([], [[2, 1]], [1], [2])


def repeated_references(ledger):
    report = ledger.reconcile(
        [(1, "5.00", "A"), (2, "6.00", "A"), (3, "7.00", "A")],
        [(1, "7.00", "a"), (2, "9.00", "A"), (3, "5.00", "A")],
    )
    assert pairs(report) == ([[1, 3], [3, 1]], [[2, 2]], [], [])
    assert report["differences"] == [[2, 2, "-3.00"]]
    report = ledger.reconcile(
        [(1, "5.00", "A")] * 3, [(1, "5.00", "A"), (1, "5.00", "A"), (1, "2.00", "A"), (1, "1.00", "A")]
    )
    assert pairs(report) == ([[1, 1], [2, 2]], [[3, 3]], [], [4])


def surplus_is_left_for_dates(ledger):
    report = ledger.reconcile([(1, "5.00", "A"), (2, "5.00", "A")], [(9, "5.00", "A"), (4, "5.00", "")])
    assert pairs(report) == ([[1, 1], [2, 2]], [], [], []) and ledger.status == 0
    report = ledger.reconcile([(1, "5.00", "A"), (2, "5.00", "A")], [(9, "5.00", "A"), (4, "5.00", "B")])
    assert pairs(report) == ([[1, 1]], [], [2], [2])


def show(ledger):
    write_bank(ledger.bank, [(1, "1,200.00", "A-1"), (2, "(0.05)", "")])
    write_books(ledger.books, [(1, "-3.10", "A-1")])
    assert ledger.run("show", "bank", ledger.bank) == 0
    assert ledger.output == "1\t2024-05-01\t1200.00\tA-1\ta, b\n2\t2024-05-02\t-0.05\t\ta, b\n"
    assert ledger.run("show", "books", ledger.books) == 0
    assert ledger.output == "1\t2024-05-01\t-3.10\tA-1\tmemo\n"


def files_out_of_format(ledger):
    write_bank(ledger.bank, [(1, "12", "A-1")])
    write_books(ledger.books, [(1, "3.10", "A-1")])
    for arguments in (
        ("show", "bank", ledger.bank),
        ("show", "bank", ledger.bank.with_name("none.csv")),
        ("show", "books", ledger.bank),
        ("reconcile", ledger.bank, ledger.books),
        ("reconcile", ledger.books.with_name("none.csv"), ledger.books),
    ):
        assert ledger.run(*arguments) == 2, arguments
        assert ledger.errors and not ledger.output


PARTS = [
    (0.2, [equal_references, entries_of_one_side]),
    (0.2, [other_amounts, large_sums]),
    (0.3, [one_without_reference, the_number_of_days, the_nearest_day]),
    (0.15, [references_come_first]),
    (0.15, [repeated_references, surplus_is_left_for_dates]),
]
KEPT = [show, files_out_of_format]


def holds(case):
    with tempfile.TemporaryDirectory() as folder:
        try:
            case(Ledger(Path(folder)))
        except Exception as error:  # whatever it is, the case does not hold
            print(f"{case.__name__}: failed ({type(error).__name__} {error})")
            return False
    print(f"{case.__name__}: ok")
    return True


sys.path.insert(0, os.getcwd())
written = sum(weight for weight, cases in PARTS if all([holds(case) for case in cases]))
kept = sum([holds(case) for case in KEPT]) / len(KEPT)
print(round(written * kept, 4))
