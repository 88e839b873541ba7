"""A checkpoint changes how long a journal takes to open, and nothing else."""

import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.lowlevel
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import events
from orchestrator.core.errors import InternalError, JournalError
from orchestrator.core.events import Event, TrialReopened, to_line
from orchestrator.core.ledger import Ledger, fold
from orchestrator.core.stages import Stage
from orchestrator.rundir.checkpoint import CHECKPOINT, load
from orchestrator.rundir.files import JOURNAL, RESULTS
from orchestrator.rundir.journal import Journal, JournalSettings, RunFiles
from orchestrator.rundir.repair import repair
from tests.waiting import until

from .conftest import entered, finished

pytestmark = pytest.mark.anyio

EAGER = JournalSettings(checkpoint=1, ballast=0)
FAILURE = {"class": "DevboxLost", "message": "größer\n", "stage": "boot"}


def _of_attempt(trial: str, attempt: int) -> list[Event]:
    of: Any = {"trial": trial, "attempt": attempt}
    result = {"outcome": "failed", "score": None, "failure": FAILURE, "of": trial, "attempt": attempt}
    return [
        *(events.StageEntered(**of, stage=stage, at=5.5) for stage in Stage),
        *(events.StageFinished(**of, stage=stage, seconds=1.0, facts={"a": [1]}, at=7.0) for stage in Stage),
        events.RunStarted(**of, run="run", devbox="devbox"),
        events.ExecutionStarted(**of, execution="exec"),
        events.AgentStarted(**of, pid=7, birth="boot 1"),
        events.OutputKept(**of, offset=9, length=8),
        events.AttemptEnded(**of, failure=FAILURE, counted=True),
        events.AttemptEnded(**of, failure=FAILURE | {"class": "Interrupted"}, counted=False),
        events.TrialFinished(**of, result=result),
        events.TrialFinished(**of, result={"outcome": "scored", "score": 0.5, "flags": ["x"], "of": trial}),
    ]


POSSIBLE = [
    *(event for trial in ("s/a/1", "t/a/2") for attempt in (1, 2, 3) for event in _of_attempt(trial, attempt)),
    *(TrialReopened(trial=trial) for trial in ("s/a/1", "t/a/2")),
    events.SweepOpened(sweep="0190", schema=1, version="0", pid=1),
    events.BenchmarkRunIntended(arm="a", number=1),
    events.BenchmarkRunStarted(arm="a", number=1, run="bmr"),
    events.BenchmarkRunEnded(arm="a", number=1, run="bmr"),
    events.Unknown(data={"event": "moon.rose"}),
    events.SweepEnded(reason="stopped"),
]


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events that can follow each other."""
    ledger, history = Ledger(), []
    for start in draw(st.lists(st.integers(0, len(POSSIBLE) - 1), max_size=30)):
        for event in POSSIBLE[start:] + POSSIBLE[:start]:
            try:
                ledger.apply(event)
            except InternalError:
                continue
            history.append(event)
            break
    return history


def write(folder: Path, history: Sequence[Event], checkpoint_at: int, results_at: int) -> None:
    """A journal with a checkpoint of its first events, left by a process that died before all results were written."""
    store = RunFiles.recover(folder, Ledger())
    for number, event in enumerate(history):
        if number == checkpoint_at:
            store.checkpoint(at_least=-1)
        store.add([event], [to_line(event)])
        if number < max(results_at, checkpoint_at):
            store.flush()
    if checkpoint_at >= len(history):
        store.checkpoint(at_least=-1)
    store.close()
    assert (found := load(folder, Ledger())) is not None
    assert found.lines == min(checkpoint_at, len(history))


@settings(max_examples=100)
@given(history=histories(), data=st.data())
def test_opening_with_a_checkpoint_is_opening_without(history: list[Event], data: st.DataObject) -> None:
    """Made at any point, followed by any events, with the last line torn anywhere."""
    at, results_at = data.draw(st.integers(0, len(history))), data.draw(st.integers(0, len(history)))
    with TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, history, at, results_at)
        with (folder / JOURNAL).open("ab") as file:
            file.write(to_line(entered(1))[: data.draw(st.integers(0, 30))])
        shutil.copytree(folder, other := folder / "other")
        (other / CHECKPOINT).unlink()
        RunFiles.recover(folder, ledger := Ledger()).close()
        RunFiles.recover(other, plain := Ledger()).close()
        assert ledger == plain == fold(history)
        assert [*ledger.trials] == [*plain.trials]
        assert [*ledger.leftovers] == [*plain.leftovers]
        assert (folder / JOURNAL).read_bytes() == (other / JOURNAL).read_bytes() == b"".join(map(to_line, history))
        assert (folder / RESULTS).read_bytes() == (other / RESULTS).read_bytes()


def kept(folder: Path) -> Path:
    """A folder with a checkpoint, and one event behind it."""
    write(folder, [finished(1), finished(2), entered(3), finished(4)], 3, 4)
    return folder


def recovered(folder: Path) -> Ledger:
    RunFiles.recover(folder, ledger := Ledger()).close()
    return ledger


def test_a_checkpoint_cut_or_changed_anywhere_is_ignored(folder: Path) -> None:
    wanted, content = recovered(kept(folder)), (folder / CHECKPOINT).read_bytes()
    changed = [bytes([*content[:at], content[at] ^ 4, *content[at + 1 :]]) for at in range(0, len(content), 7)]
    for wrong in [*changed, *(content[:end] for end in range(0, len(content), 7)), content + b"x", b"[]\n", b"\0" * 99]:
        (folder / CHECKPOINT).write_bytes(wrong)
        assert load(folder, ledger := Ledger()) is None
        assert ledger == Ledger()
    assert recovered(folder) == wanted


@pytest.mark.parametrize(("key", "is_ignored"), [("schema", True), ("code", True), ("another", False)])
def test_a_checkpoint_of_another_version_is_ignored(folder: Path, key: str, *, is_ignored: bool) -> None:
    header, *body, _ = (kept(folder) / CHECKPOINT).read_bytes().splitlines(keepends=True)
    content = b"".join([orjson.dumps(orjson.loads(header) | {key: 0}), b"\n", *body])
    (folder / CHECKPOINT).write_bytes(content + sha256(content).hexdigest().encode())
    assert (load(folder, Ledger()) is None) == is_ignored


def test_a_checkpoint_of_another_journal_is_ignored(folder: Path) -> None:
    content = (kept(folder) / JOURNAL).read_bytes()
    second = content.index(b"\n") + 1
    for other in (content[: second + 60], content.replace(b"s1", b"s9"), content[second:]):
        (folder / JOURNAL).write_bytes(other)
        assert load(folder, Ledger()) is None
        recovered(folder)
        whole = [orjson.loads(line) for line in other[: other.rfind(b"\n") + 1].splitlines()]
        results = [orjson.dumps(each["result"]) + b"\n" for each in whole if "result" in each]
        assert (folder / RESULTS).read_bytes() == b"".join(results)


def test_damage_before_the_checkpoint_is_found_all_the_same(folder: Path) -> None:
    content = (kept(folder) / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(b"x" + content[1:])
    with pytest.raises(JournalError, match="line 1, byte 0: this line is damaged"):
        recovered(folder)


def test_damage_behind_the_checkpoint_is_named_with_its_line(folder: Path) -> None:
    size = (kept(folder) / JOURNAL).stat().st_size
    with (folder / JOURNAL).open("ab") as file:
        file.write(b"{oops}\n" + to_line(entered(5)))
    with pytest.raises(JournalError, match=f"line 5, byte {size}: this line is damaged"):
        recovered(folder)


def test_repair_asks_no_checkpoint(folder: Path) -> None:
    assert repair(kept(folder)) is None
    assert not (folder / CHECKPOINT).exists()


@pytest.mark.parametrize("content", [b"", b"x", None])
def test_results_that_differ_from_the_checkpoint_are_rebuilt(folder: Path, content: bytes | None) -> None:
    whole = (kept(folder) / RESULTS).read_bytes()
    (folder / RESULTS).write_bytes(whole.replace(b"s1", b"s9") if content is None else content)
    recovered(folder)
    assert (folder / RESULTS).read_bytes() == whole


@given(history=histories(), data=st.data())
def test_a_copy_of_a_ledger_says_the_same_and_goes_its_own_way(history: list[Event], data: st.DataObject) -> None:
    """A journal on the disk is behind the events that the engine reads, and both go on from one state."""
    cut = data.draw(st.integers(0, len(history)))
    ledger = fold(history[:cut])
    twin = ledger.copy()
    assert twin == ledger
    for event in history[cut:]:
        twin.apply(event)
    assert twin == fold(history)
    assert ledger == fold(history[:cut])


async def test_a_checkpoint_is_made_while_events_come_and_at_the_end(folder: Path) -> None:
    async with Journal.open(folder, ledger := Ledger(), EAGER) as journal, anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(journal.append, entered(number), finished(number))
            await anyio.lowlevel.checkpoint()
        await journal.append()
        await until((folder / CHECKPOINT).exists, "there is no checkpoint")
        await journal.append(entered(50))
    assert (found := load(folder, known := Ledger())) is not None
    assert (found.lines, known) == (101, ledger)
    async with Journal.open(folder, again := Ledger(), EAGER) as journal:
        assert again == ledger
        await journal.append(finished(50), TrialReopened(trial="s7/a/1"))
    assert recovered(folder) == again
    assert len((folder / RESULTS).read_bytes().splitlines()) == 50


async def test_a_short_journal_has_no_checkpoint(folder: Path) -> None:
    async with Journal.open(folder, Ledger(), JournalSettings(ballast=0)) as journal:
        await journal.append(entered(1))
    assert not (folder / CHECKPOINT).exists()


async def test_an_event_that_the_ledger_refused_is_in_no_checkpoint(folder: Path) -> None:
    async with Journal.open(folder, ledger := Ledger(), EAGER) as journal:
        with pytest.raises(InternalError):
            await journal.append(TrialReopened(trial="never/a/1"))
        await journal.append(entered(1))
    assert load(folder, kept := Ledger()) is not None
    assert kept == ledger == recovered(folder)
