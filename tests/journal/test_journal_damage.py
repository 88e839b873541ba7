"""What crashes, disks and other processes do to a journal."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from subprocess import run
from sys import executable

import orjson
import pytest

from orchestrator.errors import JournalError, UsageError
from orchestrator.events import Event, to_dict
from orchestrator.journal import JOURNAL, RESULTS, Journal, locked

from .conftest import Spawn, entered, finished

pytestmark = pytest.mark.anyio

HOLDER = """
from pathlib import Path
from orchestrator.journal import locked

with locked(Path(%r)):
    print("held", flush=True)
    input()
"""

#: Appends until the disk is full, makes room, and goes on: prints what was promised, and what was said at the end.
FILLER = """
import anyio, resource, sys
from pathlib import Path
from orchestrator.errors import JournalError
from orchestrator.events import StageEntered
from orchestrator.journal import Journal

folder, ballast = Path(sys.argv[1]), Path(sys.argv[2])
limit = resource.getrlimit(resource.RLIMIT_FSIZE)

async def fill():
    async with Journal.open(folder, lambda event: None) as journal:
        for number in range(100000):
            try:
                await journal.append(StageEntered(trial=f"s{number}/a/1", attempt=1, stage="start"))
            except JournalError as error:
                print("promised", number)
                print("said", error)
                break
        try:
            await journal.append(StageEntered(trial="more/a/1", attempt=1, stage="start"))
        except JournalError:
            print("refused again")

async def go_on():
    async with Journal.open(folder, lambda event: None) as journal:
        await journal.append(StageEntered(trial="last/a/1", attempt=1, stage="start"))

if ballast.exists():
    anyio.run(fill)
    try:
        anyio.run(go_on)
    except JournalError:
        print("still full")
    ballast.unlink()
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
    anyio.run(fill)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
print("tail", (folder / "journal.jsonl").read_bytes().rpartition(b"\\n")[2])
anyio.run(go_on)
print(*[line.split(b'"')[9].decode() for line in (folder / "journal.jsonl").read_bytes().splitlines()])
"""


def lines(*events: Event) -> bytes:
    return b"".join(orjson.dumps(to_dict(event)) + b"\n" for event in events)


async def opened(folder: Path) -> list[Event]:
    events: list[Event] = []
    async with Journal.open(folder, events.append):
        return events


async def test_a_last_line_cut_at_any_byte_is_as_if_it_had_never_been_begun(folder: Path) -> None:
    whole, last = lines(entered(1), finished(2)), lines(finished(3))
    for cut in range(len(last)):
        (folder / JOURNAL).write_bytes(whole + last[:cut])
        events: list[Event] = []
        async with Journal.open(folder, events.append) as journal:
            assert lines(*events) == whole
            assert (folder / JOURNAL).read_bytes() == whole
            await journal.append(entered(4))
            assert (folder / JOURNAL).read_bytes() == whole + lines(events[-1])
    (folder / JOURNAL).write_bytes(whole + last)
    assert lines(*await opened(folder)) == whole + last


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 4096, b"\0" * 4096 + b"\n", b'{"event":"st' + b"\0" * 500])
async def test_a_tail_of_zeros_is_cut(folder: Path, tail: bytes) -> None:
    whole = lines(entered(1))
    (folder / JOURNAL).write_bytes(whole + tail)
    assert lines(*await opened(folder)) == whole
    assert (folder / JOURNAL).read_bytes() == whole


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


async def test_a_second_process_is_told_who_has_the_folder_and_has_it_once_that_is_dead(
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
    async with Journal.open(folder, lambda event: None):
        with pytest.raises(UsageError, match=f"process {os.getpid()} "), locked(folder):
            pass
    with locked(folder):
        pass


def test_a_disk_that_takes_only_a_part_of_a_line_ends_the_writing_there(folder: Path) -> None:
    """A limit on file sizes cuts a write short, as a full disk does, for an ordinary user too."""
    _check_full([executable, "-c", FILLER, str(folder), str(folder / "no ballast")])


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="only root can mount a small disk")
def test_a_full_disk_ends_the_writing_and_room_on_it_lets_it_go_on(folder: Path) -> None:
    mount = 'mount -t tmpfs -o size=64k tmpfs "$1" && head -c 16384 /dev/zero >"$1/ballast" && mkdir "$1/sweep" && '
    command = ["unshare", "--mount", "sh", "-c", mount + 'exec "$2" -c "$3" "$1/sweep" "$1/ballast"']
    can_mount = run([*command[:4], 'mount -t tmpfs tmpfs "$1"', "sh", str(folder)], capture_output=True, check=False)
    if can_mount.returncode != 0:
        pytest.skip("this machine does not let root mount")
    _check_full([*command, "sh", str(folder), executable, FILLER])


def _check_full(command: Sequence[str]) -> None:
    ended = run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    told = ended.stdout.splitlines()
    promised = int(told[0].removeprefix("promised "))
    assert promised > 10
    assert "cannot be written: [Errno " in told[1]
    assert told[2] == "refused again"
    there = told[-1].split()
    assert there[:promised] == [f"s{number}/a/1" for number in range(promised)]
    assert there[-1] == "last/a/1"
    assert "more/a/1" not in there
