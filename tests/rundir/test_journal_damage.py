"""Damage to a journal by crashes, disks and other processes."""

import os
from pathlib import Path

import pytest

from orchestrator.core.errors import JournalError, UsageError
from orchestrator.core.events import Event, to_line
from orchestrator.rundir.files import JOURNAL, RESULTS, locked
from orchestrator.rundir.journal import Journal

from .conftest import Spawn, Told, entered

pytestmark = pytest.mark.anyio

HOLDER = """
from pathlib import Path
from orchestrator.rundir.files import locked

with locked(Path(%r)):
    print("held", flush=True)
    input()
"""


def lines(*events: Event) -> bytes:
    return b"".join(map(to_line, events))


async def opened(folder: Path) -> list[Event]:
    async with Journal.open(folder, told := Told()):
        return told.events


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 4096, b"\0" * 4096 + b"\n", b'{"event":"st' + b"\0" * 500])
async def test_a_tail_of_zeros_is_cut(folder: Path, tail: bytes) -> None:
    whole = lines(entered(1))
    (folder / JOURNAL).write_bytes(whole + tail)
    assert lines(*await opened(folder)) == whole
    assert (folder / JOURNAL).read_bytes() == whole


@pytest.mark.parametrize("left", [None, b"", b"\0" * 4096, b'{"event":"swe'])
async def test_a_journal_that_lost_every_line_is_not_taken_for_a_new_one(folder: Path, left: bytes | None) -> None:
    """Begun anew, the results that are there would be written over with none, and all of it run again."""
    (folder / RESULTS).write_bytes(b'{"trial":"s1/a/1"}\n')
    if left is not None:
        (folder / JOURNAL).write_bytes(left)
    with pytest.raises(JournalError, match="put the journal back"):
        await opened(folder)
    assert (folder / RESULTS).read_bytes() == b'{"trial":"s1/a/1"}\n'


@pytest.mark.parametrize(
    "damage", [b"{oops}\n", b"\n", b"[]\n", b"{}\n", b'{"event":"trial.finished"}\n', b"\0\0\0\n", b'{"event":["a"]}\n']
)
async def test_a_damaged_line_is_named_with_its_place_and_nothing_is_touched(folder: Path, damage: bytes) -> None:
    first = lines(entered(1))
    content = first + damage + lines(entered(2)) + b'{"torn'
    (folder / JOURNAL).write_bytes(content)
    (folder / RESULTS).write_bytes(b"untouched")
    with pytest.raises(JournalError, match=rf"{JOURNAL}, line 2, byte {len(first)}: .*damaged"):
        await opened(folder)
    assert (folder / JOURNAL).read_bytes() == content
    assert (folder / RESULTS).read_bytes() == b"untouched"


async def test_any_flipped_bit_inside_is_either_still_an_event_or_named(folder: Path) -> None:
    """JSON has no checksum, so a changed letter of a name passes; what never passes is a line that breaks in two."""
    content = lines(entered(1), entered(2), entered(3))
    for position in range(0, len(content) - 1, 3):
        flipped = bytearray(content)
        flipped[position] ^= 0x0C
        (folder / JOURNAL).write_bytes(flipped)
        try:
            count = len(await opened(folder))
        except JournalError as error:
            told = error.message
            count = 3 if "line " in told and (folder / JOURNAL).read_bytes() == flipped else 0
        assert count == 3, position


async def test_a_second_process_learns_the_holder_of_the_folder_and_gets_it_after_its_death(
    folder: Path, spawn: Spawn
) -> None:
    with spawn(HOLDER % str(folder)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"is in use by process {child.pid} on .*give another --name"):
            await opened(folder)
        child.kill()
        child.wait()
        assert await opened(folder) == []


async def test_a_folder_is_locked_for_as_long_as_its_journal_is_open(folder: Path) -> None:
    async with Journal.open(folder, Told()):
        with pytest.raises(UsageError, match=f"process {os.getpid()} "), locked(folder):
            pass
    with locked(folder):
        pass
