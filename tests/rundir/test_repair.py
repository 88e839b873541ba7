"""A damaged journal keeps what can be read, and loses nothing without a word."""

from pathlib import Path

import pytest

from orchestrator.core.errors import JournalError, UsageError
from orchestrator.core.events import StageEntered, SweepOpened, TrialFinished, to_line
from orchestrator.core.ledger import Ledger
from orchestrator.core.stages import Stage
from orchestrator.rundir.files import JOURNAL, RESULTS, locked
from orchestrator.rundir.journal import Journal, read_events
from orchestrator.rundir.repair import repair

EVENTS = (
    SweepOpened(sweep="0190", schema=1, version="0", pid=1),
    StageEntered(trial="s/a/1", attempt=1, stage=Stage.START),
    StageEntered(trial="s/a/1", attempt=1, stage=Stage.BOOT),
    TrialFinished(trial="s/a/2", attempt=1, result={"outcome": "scored", "score": 1.0}),
)
LINES = [to_line(event) for event in EVENTS]


def journal(folder: Path, *lines: bytes) -> Path:
    (folder / JOURNAL).write_bytes(b"".join(lines))
    return folder


def test_a_sound_journal_is_left_as_it_is(tmp_path: Path) -> None:
    before = (journal(tmp_path, *LINES) / JOURNAL).read_bytes()
    assert repair(tmp_path) is None
    assert (tmp_path / JOURNAL).read_bytes() == before


#: More than a result can say: msgspec reads it, orjson does not write it.
HUGE = b'{"event":"trial.finished","trial":"s/a/9","attempt":1,"result":{"outcome":"scored","x":%d}}\n' % 10**30


@pytest.mark.parametrize(
    "garbage", [b"\x00\xff\x00\n", b'{"event":"stage.ent\n', b"\n", b'{"event":"trial.finished"}\n']
)
def test_damaged_lines_are_set_aside_byte_for_byte_and_the_others_kept(tmp_path: Path, garbage: bytes) -> None:
    journal(tmp_path, LINES[0], LINES[1], garbage, *LINES[2:])
    with pytest.raises(JournalError, match="line 3, byte"):
        list(read_events(tmp_path / JOURNAL))
    lost = repair(tmp_path)
    assert lost is not None
    assert lost.file is not None
    assert (lost.lines, lost.bytes, lost.file.read_bytes()) == (1, len(garbage), garbage)
    assert (tmp_path / JOURNAL).read_bytes() == b"".join(LINES)


def test_events_that_depend_on_a_damaged_line_are_set_aside_with_it(tmp_path: Path) -> None:
    journal(tmp_path, LINES[0], LINES[1][:10] + b"\n", *LINES[2:])
    lost = repair(tmp_path)
    assert lost is not None
    assert lost.file is not None
    assert (lost.lines, lost.trials) == (2, ("s/a/1",))
    assert [event.kind for event, _ in read_events(tmp_path / JOURNAL)] == ["sweep.opened", "trial.finished"]


def test_a_folder_that_is_in_use_or_no_sweep_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no journal"):
        repair(tmp_path)
    journal(tmp_path, b"garbage\n")
    with locked(tmp_path), pytest.raises(UsageError, match="is in use by process"):
        repair(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == b"garbage\n"


@pytest.mark.anyio
async def test_a_result_that_cannot_be_written_is_named_and_set_aside(tmp_path: Path) -> None:
    journal(tmp_path, *LINES, HUGE)
    with pytest.raises(JournalError, match=rf"byte {len(b''.join(LINES))}: this result is damaged .*`sweep repair`"):
        async with Journal.open(tmp_path, Ledger()):
            pass
    lost = repair(tmp_path)
    assert lost is not None
    assert lost.file is not None
    assert (lost.trials, lost.file.read_bytes()) == (("s/a/9",), HUGE)
    async with Journal.open(tmp_path, Ledger()):
        assert (tmp_path / RESULTS).read_bytes() == b'{"outcome":"scored","score":1.0}\n'


def test_a_journal_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    """It may mean something else by the same words: here all of it would look damaged."""
    opened = SweepOpened(sweep="0190", schema=2, version="7.1", pid=1)
    before = (journal(tmp_path, to_line(opened), b'{"event":"stage.entered"}\n') / JOURNAL).read_bytes()
    with pytest.raises(UsageError, match=r"written by sweep 7\.1"):
        repair(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != "lock"] == [JOURNAL]
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_a_disk_that_refuses_is_named_and_the_journal_stays(tmp_path: Path) -> None:
    journal(tmp_path, *LINES, b"garbage\n")
    (tmp_path / f".{JOURNAL}.new").mkdir()
    with pytest.raises(JournalError, match=r"cannot be repaired: .*as it was"):
        repair(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == b"".join(LINES) + b"garbage\n"
