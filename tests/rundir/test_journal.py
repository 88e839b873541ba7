"""The journal: what is appended is there, in order, and a crash costs nothing but what nobody was told of."""

from math import nan
from pathlib import Path

import anyio
import orjson
import pytest
from msgspec.structs import replace

from orchestrator.core.errors import InternalError, JournalError, UsageError
from orchestrator.core.events import Event, StageFinished, SweepOpened, TrialReopened, Unknown, to_line
from orchestrator.core.ledger import Ledger
from orchestrator.core.stages import Stage
from orchestrator.rundir.files import JOURNAL, RESULTS, write_atomically
from orchestrator.rundir.journal import Journal, read_events
from orchestrator.rundir.manifest import read_manifest

from .conftest import Spawn, Told, entered, finished

pytestmark = pytest.mark.anyio

APPENDER = """
import anyio, sys
from pathlib import Path
from orchestrator.core.events import StageEntered
from orchestrator.rundir.journal import Journal
from orchestrator.core.ledger import Ledger
from orchestrator.core.stages import Stage

async def main():
    async with Journal.open(Path(sys.argv[1]), Ledger()) as journal:
        for number in range(100000):
            await journal.append(StageEntered(trial=f"s{number}/a/1", attempt=1, stage=Stage.START))
            print(number, flush=True)

sys.argv = ["", %r]
anyio.run(main)
"""


LEFT = StageFinished(trial="s1/a/1", attempt=1, stage=Stage.BOOT, seconds=1.0)


def trials(path: Path) -> list[str]:
    return [orjson.loads(line)["trial"] for line in (path / JOURNAL).read_bytes().splitlines()]


async def reopened(folder: Path) -> list[Event]:
    """The events that a process which opens the folder now is told of."""
    async with Journal.open(folder, told := Told()):
        return told.events


async def test_append_returns_when_the_event_is_in_the_file_and_applied(folder: Path) -> None:
    seen = (told := Told()).events
    async with Journal.open(folder, told) as journal:
        await journal.append(entered(1), entered(2))
        assert trials(folder) == ["s1/a/1", "s2/a/1"]
        assert (folder / JOURNAL).read_bytes() == b"".join(map(to_line, seen))
        assert all(event.at > 1e9 for event in seen)


async def test_the_event_that_is_applied_is_the_one_that_will_be_read(folder: Path) -> None:
    seen = (told := Told()).events
    async with Journal.open(folder, told) as journal:
        await journal.append(replace(LEFT, facts={"stage": Stage.BOOT, "two": (1, 2), "none": nan}))
        [event] = seen
        assert replace(event, at=0.0) == replace(LEFT, facts={"stage": "boot", "two": [1, 2], "none": None})
    assert await reopened(folder) == seen


@pytest.mark.parametrize("event", [replace(LEFT, seconds=nan), replace(LEFT, stage="nowhere")])
async def test_an_event_that_could_not_be_read_again_is_refused_and_not_written(folder: Path, event: Event) -> None:
    async with Journal.open(folder, Told()) as journal:
        with pytest.raises(JournalError, match=r"event stage\.finished: "):
            await journal.append(event)
    assert (folder / JOURNAL).read_bytes() == b""


async def test_a_killed_process_has_written_all_that_its_appends_confirmed(folder: Path, spawn: Spawn) -> None:
    with spawn(APPENDER % str(folder)) as child:
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(50)]
        child.kill()
        told += [int(line) for line in child.stdout.read().splitlines()]
    events = await reopened(folder)
    assert len(events) >= len(told)
    assert trials(folder)[: len(told)] == [f"s{number}/a/1" for number in told]


async def test_two_hundred_appenders_at_once_keep_their_order_and_share_their_syncs(folder: Path) -> None:
    seen = (told := Told()).events
    async with Journal.open(folder, told) as journal:
        counters = Path(f"/proc/self/task/{journal._writer.thread.native_id}/io")
        before = _writes(counters)
        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(journal.append, entered(number))
        writes = _writes(counters) - before
    assert trials(folder) == [f"s{number}/a/1" for number in range(200)]
    assert (folder / JOURNAL).read_bytes() == b"".join(map(to_line, seen))
    assert writes < 100


def _writes(counters: Path) -> int:
    if not counters.exists():
        pytest.skip("this kernel does not count the writes of a thread")
    return int(dict(line.split(": ") for line in counters.read_text().splitlines())["syscw"])


async def test_an_event_nobody_waits_for_is_written_with_the_next_awaited_one_at_the_latest(folder: Path) -> None:
    async with Journal.open(folder, Told()) as journal:
        journal.append_nowait(entered(1))
        journal.append_nowait(entered(2))
        await journal.append(entered(3))
        assert trials(folder) == ["s1/a/1", "s2/a/1", "s3/a/1"]
        journal.append_nowait(entered(4))
        await journal.append()
        assert trials(folder)[-1] == "s4/a/1"


async def test_events_appended_before_the_journal_closes_are_written(folder: Path) -> None:
    async with Journal.open(folder, Told()) as journal:
        journal.append_nowait(entered(1))
        journal.append_nowait(entered(2))
    assert trials(folder) == ["s1/a/1", "s2/a/1"]


async def test_an_appender_that_is_canceled_has_its_event_written_all_the_same(folder: Path) -> None:
    seen = (told := Told()).events
    async with Journal.open(folder, told) as journal:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await journal.append(entered(1))
        await journal.append(entered(2))
        assert trials(folder) == ["s1/a/1", "s2/a/1"]
        assert (folder / JOURNAL).read_bytes() == b"".join(map(to_line, seen))


async def test_after_the_end_nothing_is_taken_and_nobody_hangs(folder: Path) -> None:
    async with Journal.open(folder, Told()) as journal:
        pass
    with anyio.fail_after(5), pytest.raises(JournalError, match="is closed"):
        await journal.append(entered(1))
    with pytest.raises(JournalError, match="is closed"):
        journal.append_nowait(entered(1))


def test_a_loop_that_ends_with_appenders_in_it_ends(folder: Path) -> None:
    async def main() -> None:
        async with Journal.open(folder, Told()) as journal, anyio.create_task_group() as tasks:
            tasks.start_soon(journal.append, entered(1))
            tasks.start_soon(journal.append, entered(2))
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    anyio.run(main)
    assert trials(folder) == ["s1/a/1", "s2/a/1"]


async def test_an_event_that_cannot_follow_fails_its_append(folder: Path) -> None:
    async with Journal.open(folder, Ledger()) as journal:
        with anyio.fail_after(5), pytest.raises(InternalError, match="reopens trial never/a/1"):
            await journal.append(_impossible())
        await journal.append(entered(1))


async def test_an_event_that_cannot_follow_is_refused_at_once_and_never_written(folder: Path) -> None:
    async with Journal.open(folder, ledger := Ledger()) as journal:
        with pytest.raises(InternalError):
            journal.append_nowait(entered(1), _impossible(), entered(2))
        await journal.append(entered(3))
    assert trials(folder) == ["s1/a/1", "s3/a/1"]
    async with Journal.open(folder, again := Ledger()):
        assert again == ledger


def _impossible() -> Event:
    return TrialReopened(trial="never/a/1")


async def test_a_journal_that_does_not_add_up_says_where(folder: Path) -> None:
    lines = [to_line(event) for event in (entered(1), _impossible(), entered(2))]
    (folder / JOURNAL).write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=rf"{JOURNAL}, byte {len(lines[0])}: .*reopens trial never/a/1"):
        async with Journal.open(folder, Ledger()):
            pass
    assert (folder / JOURNAL).read_bytes() == b"".join(lines)


async def test_events_of_a_later_version_stay_as_they_are(folder: Path) -> None:
    line = b'{"event":"moon.rose","z":1,"at":2.5,"a":[null]}\n'
    (folder / JOURNAL).write_bytes(line)
    assert await reopened(folder) == [Unknown(at=2.5, data=orjson.loads(line))]
    assert (folder / JOURNAL).read_bytes() == line


async def test_a_journal_whose_events_mean_something_else_is_refused_with_the_version_that_reads_it(
    folder: Path,
) -> None:
    async with Journal.open(folder, Told()) as journal:
        await journal.append(SweepOpened(sweep="x", schema=99, version="7.1", pid=1))
    with pytest.raises(UsageError, match=r"written by sweep 7\.1"):
        await reopened(folder)


async def test_a_folder_that_cannot_be_written_is_a_journal_error(folder: Path) -> None:
    (folder / RESULTS).mkdir()
    with pytest.raises(JournalError, match="cannot be opened"):
        await reopened(folder)


async def test_a_new_folder_has_an_empty_journal_and_no_results(folder: Path) -> None:
    assert await reopened(folder) == []
    assert ((folder / JOURNAL).read_bytes(), (folder / RESULTS).read_bytes()) == (b"", b"")


async def test_results_follow_the_journal_line_by_line(folder: Path) -> None:
    async with Journal.open(folder, Told()) as journal:
        await journal.append(entered(1), finished(1))
        await journal.append(finished(2, 0.5))
        lines = (folder / RESULTS).read_bytes().splitlines()
        assert [orjson.loads(line) for line in lines] == [finished(1).result, finished(2, 0.5).result]


async def test_results_that_are_missing_cut_longer_or_wrong_are_rebuilt_byte_for_byte(folder: Path) -> None:
    async with Journal.open(folder, Told()) as journal:
        await journal.append(finished(1), finished(2), entered(3), finished(3, 0.25))
    whole = (folder / RESULTS).read_bytes()
    wrong = [None, *(whole[:cut] for cut in range(0, len(whole), 7)), whole + whole, whole + b"{", whole.upper()]
    for content in wrong:
        (folder / RESULTS).unlink() if content is None else (folder / RESULTS).write_bytes(content)
        await reopened(folder)
        assert (folder / RESULTS).read_bytes() == whole


def scores(folder: Path) -> list[tuple[str, float]]:
    lines = [orjson.loads(line) for line in (folder / RESULTS).read_bytes().splitlines()]
    return [(line["scenario"], line["score"]) for line in lines]


async def test_a_reopened_trial_has_its_latest_result_only_and_in_its_new_place(folder: Path) -> None:
    async with Journal.open(folder, Told()) as journal:
        await journal.append(finished(1, 0.0), finished(2), TrialReopened(trial="s1/a/1"), finished(1, 1.0))
        assert scores(folder) == [("s2", 1.0), ("s1", 1.0)]
    await reopened(folder)
    assert scores(folder) == [("s2", 1.0), ("s1", 1.0)]


async def test_a_reopening_takes_the_result_away_at_once_and_replaces_the_file_as_a_whole(folder: Path) -> None:
    async with Journal.open(folder, Told()) as journal:
        await journal.append(finished(1, 0.0), finished(2), finished(3))
        with (folder / RESULTS).open("rb") as before:
            await journal.append(TrialReopened(trial="s1/a/1"), TrialReopened(trial="s3/a/1"))
            assert before.read().count(b"\n") == 3
        assert scores(folder) == [("s2", 1.0)]
        await journal.append(finished(3, 0.5))
        assert scores(folder) == [("s2", 1.0), ("s3", 0.5)]
        assert len(trials(folder)) == 6
    async with Journal.open(folder, Told()) as journal:
        await journal.append(TrialReopened(trial="s2/a/1"))
        assert scores(folder) == [("s3", 0.5)]


def test_each_event_is_read_with_the_offset_behind_its_line(folder: Path) -> None:
    lines = [to_line(event) for event in (entered(1), finished(2))]
    (folder / JOURNAL).write_bytes(b"".join(lines) + b'{"event"')
    ends = [end for _, end in read_events(folder / JOURNAL)]
    assert ends == [len(lines[0]), len(lines[0] + lines[1])]


def test_a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(folder: Path) -> None:
    write_atomically(folder / "x", b"one")
    write_atomically(folder / "x", b"two")
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("x", b"two")]


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, UsageError), (b"{", JournalError), (b"[]", JournalError), (b'{"sweep": "0190"}', JournalError)],
)
def test_a_manifest_that_is_not_one_is_named(folder: Path, content: bytes | None, error: type[Exception]) -> None:
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    with pytest.raises(error, match=r"manifest\.json"):
        read_manifest(folder)
