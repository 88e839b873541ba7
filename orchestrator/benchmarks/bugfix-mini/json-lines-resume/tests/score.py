"""Scores the importer: a share for each of the three faults, times the share of what still works.

Prints one number, last. What the program prints is kept away from that output.
"""

import contextlib
import csv
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path


def line(number, user="ada", amount=100):
    return json.dumps({"id": number, "user": user, "amount": amount}, ensure_ascii=False).encode() + b"\n"


class Box:
    """A source, a target and a state in a folder of their own."""

    def __init__(self, folder):
        self.source, self.target, self.state = folder / "in.jsonl", folder / "out.csv", folder / "state.json"

    def run(self, content, *options):
        """One run of the importer in this process (a process for each would be slow); returns its exit status."""
        self.source.write_bytes(content)
        self.out, self.err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
        sys.argv = ["importer", *self.paths(self.target), *options]
        with contextlib.redirect_stdout(self.out), contextlib.redirect_stderr(self.err):
            try:
                runpy.run_module("importer", run_name="__main__", alter_sys=True)
            except SystemExit as ended:
                return ended.code or 0
        return 0

    def paths(self, target):
        return [str(self.source), str(target), "--state", str(self.state)]

    @property
    def said(self):
        self.out.seek(0)
        return (self.out.read().splitlines() or [""])[-1]

    @property
    def complained(self):
        self.err.seek(0)
        return self.err.read()

    @property
    def rows(self):
        with self.target.open(encoding="utf-8", newline="") as file:
            return [(int(number), user, int(amount)) for number, user, amount in csv.reader(file)]

    @property
    def ids(self):
        return [row[0] for row in self.rows]


def cut_in_a_line(box):
    content = line(1) + line(2) + line(3)
    for cut in (len(line(1)) + 10, len(content) - 1):
        assert box.run(content[:cut]) == 0
        assert not box.complained
    assert box.ids == [1, 2]
    assert box.run(content) == 0 and box.said == "imported 1"
    assert box.run(content) == 0 and box.said == "imported 0"
    assert box.ids == [1, 2, 3]


def cut_in_a_character(box):
    content = line(1) + line(2, "Zoë") + line(3)
    cut = content.index("ë".encode()) + 1
    assert box.run(content[:cut]) == 0
    assert box.ids == [1]
    assert box.run(content) == 0
    assert box.rows == [(1, "ada", 100), (2, "Zoë", 100), (3, "ada", 100)]


def cut_after_the_closing_brace(box):
    content = line(1) + line(2)
    assert box.run(content[:-1]) == 0 and box.said == "imported 1"
    assert box.run(content + line(3)) == 0 and box.said == "imported 2"
    assert box.ids == [1, 2, 3]


def names(box):
    content, everybody = b"", ["Zoë", "Łukasz", "李雷", "🙂", "ada", "\u2028line", "bob"]
    for number, user in enumerate(everybody, start=1):
        content += line(number, user)
        assert box.run(content) == 0 and box.said == "imported 1"
    assert [row[:2] for row in box.rows] == list(enumerate(everybody, start=1))


def names_and_a_limit(box):
    content = b"".join(line(number, "é" * number) for number in range(1, 7))
    for _ in range(3):
        assert box.run(content, "--limit", "2") == 0 and box.said == "imported 2"
    assert box.ids == [1, 2, 3, 4, 5, 6]


def position_of_a_broken_line(box):
    before = line(1, "Zoë") + line(2, "李雷")
    assert box.run(before + b"oops\n") == 2
    assert box.complained.startswith(f"{box.source}: byte {len(before)}: ")


def broken_line(box):
    broken, repaired = line(1) + line(2) + b'{"id": 3, "user": 7}\n' + line(4), b"".join(map(line, (1, 2, 3, 4)))
    for said in ("imported 2", "imported 0", "imported 0"):
        assert box.run(broken) == 2 and box.said == said
        assert box.complained.startswith(f"{box.source}: byte {len(line(1) * 2)}: ")
        assert box.ids == [1, 2]
    assert box.run(repaired) == 0 and box.said == "imported 2"
    assert box.ids == [1, 2, 3, 4]


def broken_line_later(box):
    assert box.run(line(1)) == 0
    assert box.run(line(1) + line(2) + b"[]\n") == 2
    assert box.run(line(1) + line(2) + b"[]\n") == 2
    assert box.ids == [1, 2]


def plain_resume(box):
    assert box.run(line(1) + b"\n" + line(2)) == 0 and box.said == "imported 2"
    assert box.run(line(1) + b"\n" + line(2) + line(3) + b" \n") == 0 and box.said == "imported 1"
    assert box.ids == [1, 2, 3]


def limit(box):
    content = b"".join(map(line, range(1, 6)))
    for said in ("imported 2", "imported 2", "imported 1", "imported 0"):
        assert box.run(content, "--limit", "2") == 0 and box.said == said
    assert box.ids == [1, 2, 3, 4, 5]


def rotated(box):
    assert box.run(line(1) + line(2)) == 0
    assert box.run(line(3)) == 0
    assert box.ids == [1, 2, 3]


def full_disk(box):
    box.source.write_bytes(line(1) + line(2))
    command = [sys.executable, "-B", "-m", "importer", *box.paths("/dev/full")]
    assert subprocess.run(command, capture_output=True, timeout=20).returncode != 0
    assert box.run(line(1) + line(2)) == 0
    assert box.ids == [1, 2]


def old_state(box):
    box.state.write_text(json.dumps({"offset": len(line(1))}))
    assert box.run(line(1) + line(2)) == 0
    assert box.ids == [2]


def a_broken_first_line(box):
    assert box.run(b"oops\n" + line(1)) == 2 and box.said == "imported 0"
    assert box.complained.startswith(f"{box.source}: byte 0: ")
    assert box.ids == []


FAULTS = [
    (0.4, [cut_in_a_line, cut_in_a_character, cut_after_the_closing_brace]),
    (0.3, [names, names_and_a_limit, position_of_a_broken_line]),
    (0.3, [broken_line, broken_line_later]),
]
KEPT = [plain_resume, limit, rotated, full_disk, old_state, a_broken_first_line]


def holds(case):
    with tempfile.TemporaryDirectory() as folder:
        try:
            case(Box(Path(folder)))
        except Exception as error:  # whatever it is, the case does not hold
            print(f"{case.__name__}: failed ({type(error).__name__} {error})")
            return False
    print(f"{case.__name__}: ok")
    return True


sys.path.insert(0, os.getcwd())
mended = sum(weight for weight, cases in FAULTS if all([holds(case) for case in cases]))
kept = sum([holds(case) for case in KEPT]) / len(KEPT)
print(round(mended * kept, 4))
