"""Nothing fails because of what it logs, wherever that goes, and a line that is written is whole."""

import io
import os
import subprocess
import sys
from typing import Any

import orjson
import pytest
import structlog

from orchestrator.common import logging_setup

#: Logs to standard error before and after something has happened to it, and says on standard output that it lives.
PROGRAM = """
import logging, os, sys, structlog
from orchestrator.common import logging_setup
logging_setup.to_stream()
structlog.get_logger().info("before")
{happens}
for _ in range(3):
    structlog.get_logger().warning("meanwhile", padding="x" * 10_000)
    logging.getLogger("a library").error("meanwhile")
logging_setup.to_stream()
structlog.get_logger().warning("after")
print("alive", flush=True)
"""


@pytest.mark.parametrize(
    "happens",
    [
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
        "os.close(2)",
        "sys.stderr.close()",
        "sys.stderr = None",
        "reader, writer = os.pipe(); os.dup2(writer, 2); os.close(writer); os.close(reader)",
    ],
    ids=["full", "closed", "closed-by-python", "none", "without-a-reader"],
)
def test_standard_error_that_takes_nothing_fails_nobody(happens: str) -> None:
    argv = [sys.executable, "-c", PROGRAM.format(happens=happens)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "alive\n")
    assert '"before"' in ended.stderr


class Unspeakable:
    """An object of a library that is broken in more ways than one."""

    def __repr__(self) -> str:
        raise RuntimeError


def odd() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return [2**80, os.fsdecode(b"/name/\xff"), {1: 2}, {(1, 2): 3}, endless, b"bytes", Unspeakable(), float("nan")]


@pytest.mark.parametrize("value", odd(), ids=lambda value: type(value).__name__)
def test_a_value_that_json_cannot_say_is_said_all_the_same(value: Any) -> None:
    logging_setup.to_stream(stream := io.StringIO())
    structlog.get_logger().info("odd", value=value, plain="text")
    line = orjson.loads(stream.getvalue())
    assert (line["event"], line["plain"]) == ("odd", "text")
    assert "value" in line


class Narrow(io.RawIOBase):
    """Takes a line, a half of one, nothing, and then all."""

    def __init__(self) -> None:
        self.taken = b""
        self.rooms = [1000, 30, 0, 0, 1000, 1000]

    def write(self, data: Any, /) -> int:
        room = self.rooms.pop(0)
        if room == 0:
            raise OSError(28, "No space left on device")
        self.taken += bytes(data[:room])
        return min(room, len(data))

    def writable(self) -> bool:
        return True


def test_no_line_begins_in_one_that_did_not_fit() -> None:
    narrow = Narrow()
    logging_setup.to_stream(io.TextIOWrapper(io.BufferedWriter(narrow)))
    for number in range(6):
        structlog.get_logger().info("line", number=number)
    lines = narrow.taken.splitlines()
    assert [orjson.loads(line)["number"] for line in (lines[0], *lines[2:])] == [0, 4, 5]
    assert len(lines[1]) == 30
