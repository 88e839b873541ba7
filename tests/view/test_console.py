"""Output of threads to real pipes and terminals: no writer waits for a reader, and dropped lines are counted."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import orjson
import pytest

from orchestrator.view.console import Output

#: Bytes of a pipe that nobody reads, and then some.
MORE_THAN_A_PIPE = 1 << 17


def left_out(count: int) -> str:
    return f"{count} left out\n"


@contextmanager
def reading() -> Iterator[tuple[int, int]]:
    """A pipe: where to read and where to write."""
    ours, theirs = os.pipe()
    try:
        yield ours, theirs
    finally:
        for fd in (ours, theirs):
            with suppress(OSError):
                os.close(fd)


@contextmanager
def terminal(rows: int = 24, columns: int = 80) -> Iterator[tuple[int, int]]:
    """A terminal: its other side, and where to write."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    try:
        yield ours, theirs
    finally:
        for fd in (ours, theirs):
            with suppress(OSError):
                os.close(fd)


def read_all(fd: int) -> bytes:
    """Read the bytes that are there now."""
    found = b""
    while select.select([fd], [], [], 0.3)[0]:
        found += os.read(fd, 65536)
    return found


def test_lines_come_out_in_order() -> None:
    with reading() as (ours, theirs):
        output = Output(theirs, left_out)
        for number in range(100):
            output.write(f"{number}\n".encode())
        assert output.settle()
        assert os.read(ours, 65536).split() == [str(number).encode() for number in range(100)]


def test_a_writer_without_a_reader_never_waits_and_dropped_lines_are_counted() -> None:
    with reading() as (ours, theirs):
        output = Output(theirs, left_out, room=10_000)
        began, count = time.monotonic(), 200_000
        for number in range(count):
            output.write(b"%09d\n" % number)
        assert time.monotonic() - began < 10
        assert output._waiting <= 10_000
        assert not output.settle(0.3)
        lines = read_all(ours).decode().split("\n")
    assert lines.pop() == ""
    due, gaps = 0, 0
    for line in lines:
        if line.endswith("left out"):
            due, gaps = due + int(line.split()[0]), gaps + 1
        else:
            assert int(line) == due
            due += 1
    assert due == count
    assert gaps


def test_lines_after_an_empty_picture_are_written_too() -> None:
    with reading() as (ours, theirs):
        output = Output(theirs, left_out)
        output.show([])
        assert output.settle()
        output.write(b"a line\n")
        assert output.settle()
        assert os.read(ours, 65536) == b"a line\n"


def test_a_reader_that_is_gone_ends_the_output_and_nothing_else() -> None:
    with reading() as (ours, theirs):
        output = Output(theirs, left_out)
        os.close(ours)
        output.write(b"nobody hears\n")
        assert output.settle()
        assert output.is_gone
        output.write(b"x" * MORE_THAN_A_PIPE)
        assert output.settle()


def test_lines_that_a_full_disk_refused_are_counted_when_there_is_room_again() -> None:
    with open("/dev/full", "wb") as full, reading() as (ours, theirs):  # noqa: PTH123 - a device
        fd = os.dup(full.fileno())
        output = Output(fd, left_out)
        for number in range(3):
            output.write(f"lost {number}\n".encode())
            assert output.settle()
        assert not output.is_gone
        os.dup2(theirs, fd)
        output.write(b"kept\n")
        assert output.settle()
        assert os.read(ours, 65536) == b"3 left out\nkept\n"
        os.close(fd)


def test_a_descriptor_that_is_nonblocking_is_waited_for() -> None:
    with reading() as (ours, theirs):
        os.set_blocking(theirs, False)
        output = Output(theirs, left_out)
        data = b"x" * (MORE_THAN_A_PIPE - 1) + b"\n"
        output.write(data)
        found = b""
        while len(found) < len(data):
            found += os.read(ours, 65536)
        assert found == data


def test_only_the_newest_of_unread_pictures_is_drawn() -> None:
    with terminal() as (ours, theirs):
        termios.tcflow(theirs, termios.TCOOFF)  # Ctrl-S
        output = Output(theirs, left_out)
        for number in range(1000):
            output.show([f"picture {number}", "x" * 70])
        output.write(b"a line\n")
        assert not output.settle(0.3)
        termios.tcflow(theirs, termios.TCOON)
        assert output.settle()
        seen = read_all(ours).decode()
    assert seen.count("picture ") <= 2
    assert "picture 999" in seen
    assert "a line" in seen


def test_lines_stand_above_the_picture_which_is_erased_by_as_many_lines_as_it_has() -> None:
    with terminal() as (ours, theirs):
        output = Output(theirs, left_out)
        output.show(["one", "two", "three"])
        assert output.settle()
        assert read_all(ours) == b"\x1b[?25lone\r\ntwo\r\nthree"
        output.write(b"a line\n")
        assert output.settle()
        assert read_all(ours) == b"\r\x1b[2K" + b"\x1b[1A\x1b[2K" * 2 + b"a line\r\none\r\ntwo\r\nthree"
        output.show(())
        assert output.settle()
        assert read_all(ours) == b"\r\x1b[2K" + b"\x1b[1A\x1b[2K" * 2 + b"\x1b[?25h"


def test_leaving_restores_the_cursor_or_gives_up_soon() -> None:
    with terminal() as (ours, theirs):
        output = Output(theirs, left_out)
        output.show(["picture"])
        assert output.settle()
        read_all(ours)
        output.leave()
        assert read_all(ours) == b"\x1b[?25h\r\n"
        termios.tcflow(theirs, termios.TCOOFF)
        output.show(["another"])
        assert not output.settle(0.1)
        began = time.monotonic()
        output.leave()
        assert time.monotonic() - began < 2
        termios.tcflow(theirs, termios.TCOON)


PROGRAM = """
import os, signal, sys, termios
from orchestrator.view.console import write_by_threads, finish_writing
write_by_threads()
attributes = termios.tcgetattr(1)
attributes[3] |= termios.TOSTOP
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
termios.tcsetattr(1, termios.TCSANOW, attributes)
signal.signal(signal.SIGTTOU, signal.SIG_DFL)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    write_by_threads()
    print("from the background", flush=True)
    finish_writing(0.5)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, os.WUNTRACED)[1]), "is the status of one in the background")
finish_writing()
"""


def test_a_background_sweep_prints_nothing_and_is_not_stopped_under_tostop() -> None:
    """Like after `stty tostop`."""
    pid, fd = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM])
    seen = b""
    with suppress(OSError):
        while select.select([fd], [], [], 30)[0] and (piece := os.read(fd, 65536)):
            seen += piece
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert seen == b"7 is the status of one in the background\r\n"


@pytest.mark.parametrize("output", ["JSON", "LINES"])
def test_dropped_lines_are_reported_on_standard_output_in_its_own_format(output: str) -> None:
    as_json = output == "JSON"
    program = f"""
import sys
from orchestrator.view import console, formats
console.Output.__init__.__kwdefaults__["room"] = 1000
output = formats.{output}
console.write_by_threads(output)
for number in range(100_000):
    console.print_record({{"number": number}}, output) if {as_json} else console.say(f"number {{number}}")
sys.stderr.write("written\\n")
console.finish_writing(30)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline() == b"written\n"
        lines = process.stdout.read().decode().splitlines()
        assert process.wait(30) == 0
    if as_json:
        documents = [orjson.loads(line) for line in lines]
        missing = sum(each["lines"] for each in documents if each.get("event") == "left_out")
    else:
        missing = sum(int(line.split()[1]) for line in lines if line.startswith("…"))
    numbered = [line for line in lines if "number" in line]
    assert missing > 0
    assert len(numbered) + missing == 100_000
