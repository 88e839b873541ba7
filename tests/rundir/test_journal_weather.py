"""A journal whose disk is slow, or that somebody else writes to, cuts or replaces while it is open."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from orchestrator.core.errors import JournalError
from orchestrator.core.events import Event, TrialFinished, TrialReopened
from orchestrator.core.ledger import Ledger, fold
from orchestrator.rundir.files import JOURNAL, RESULTS
from orchestrator.rundir.journal import Journal, JournalSettings, read_events
from orchestrator.rundir.repair import repair

from .conftest import entered, scenarios
from .test_checkpoint import histories

pytestmark = pytest.mark.anyio

SOON = JournalSettings(retry=0.02, ballast=0)


def finished(number: int, attempt: int = 1) -> TrialFinished:
    """With a result line as sweeps write it."""
    result = {"scenario": f"s{number}", "arm": "a", "trial": 1, "outcome": "scored", "score": 1.0, "flags": []}
    return TrialFinished(
        trial=f"s{number}/a/1", attempt=attempt, result=result | {"attempts": [{"attempt": attempt, "failure": None}]}
    )


def delayed(sync: Callable[[int], None], seconds: Callable[[], float]) -> Callable[[int], None]:
    def slow(fd: int) -> None:
        time.sleep(seconds())
        sync(fd)

    return slow


@settings(max_examples=25, deadline=None)
@given(history=histories(), seed=st.integers(0, 2**32))
def test_a_read_after_an_append_includes_it_however_slow_the_disk(history: list[Event], seed: int) -> None:
    with TemporaryDirectory() as path:
        anyio.run(_append_all, Path(path), history, Random(seed))


async def _append_all(folder: Path, history: list[Event], random: Random) -> None:
    expected = Ledger()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", delayed(os.fsync, lambda: random.uniform(0, 0.01)))
        async with Journal.open(folder, ledger := Ledger(), SOON) as journal:
            for event in history:
                if random.random() < 0.3:
                    await journal.append(event)
                else:
                    journal.append_nowait(event)
                expected.apply(structs.replace(event, at=ledger.at))
                assert ledger == expected
    assert fold(event for event, _ in read_events(folder / JOURNAL)) == ledger


def cut(path: Path) -> None:
    os.truncate(path, 0)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def soil(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\x00\xff garbage of another process\n")


def put_an_older_one_in_its_place(path: Path) -> None:
    older = path.with_name("older")
    older.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    older.replace(path)


@pytest.mark.parametrize("change", [cut, halve, soil, put_an_older_one_in_its_place])
async def test_a_journal_changed_by_another_program_is_noticed_and_repaired_without_losing_results(
    folder: Path, change: Callable[[Path], None]
) -> None:
    """Trials that the results still have are taken from there; the others are as if they had never begun."""
    async with Journal.open(folder, Ledger(), SOON) as journal:
        for number in range(1, 5):
            await journal.append(entered(number), finished(number))
        change(folder / JOURNAL)
        changed = (folder / JOURNAL).read_bytes()
        with pytest.raises(JournalError, match=r"changed by somebody else .* `sweep repair "):
            await journal.append(entered(5))
        with pytest.raises(JournalError, match="changed by somebody else"):
            await journal.append()
    assert (folder / JOURNAL).read_bytes() == changed
    with pytest.raises(JournalError, match="sweep repair"):
        async with Journal.open(folder, Ledger()):
            pass
    assert scenarios(folder) == ["s1", "s2", "s3", "s4"]
    assert repair(folder) is not None
    async with Journal.open(folder, ledger := Ledger()) as journal:
        assert sorted(key.scenario for key in ledger.finished) == ["s1", "s2", "s3", "s4"]
        await journal.append(entered(5), finished(5))
    assert sorted(scenarios(folder)) == ["s1", "s2", "s3", "s4", "s5"]


async def test_a_result_that_a_reopening_took_back_is_not_put_back(folder: Path) -> None:
    """The process died between the two files: the journal has the reopening, the results are as before it."""
    async with Journal.open(folder, Ledger(), SOON) as journal:
        await journal.append(entered(1), finished(1), entered(2), finished(2))
        before = (folder / RESULTS).read_bytes()
        await journal.append(TrialReopened(trial="s1/a/1"))
    (folder / RESULTS).write_bytes(before)
    assert repair(folder) is None
    async with Journal.open(folder, ledger := Ledger()):
        assert [key.scenario for key in ledger.finished] == ["s2"]
    assert scenarios(folder) == ["s2"]


@pytest.mark.parametrize("change", [cut, halve, soil])
async def test_results_changed_by_another_program_are_rebuilt_with_the_next_one(
    folder: Path, change: Callable[[Path], None]
) -> None:
    async with Journal.open(folder, Ledger(), SOON) as journal:
        await journal.append(finished(1), finished(2))
        change(folder / RESULTS)
        await journal.append(finished(3))
        assert scenarios(folder) == ["s1", "s2", "s3"]


async def test_an_unexpected_error_of_the_writer_fails_its_callers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("none left")

    async with Journal.open(folder, Ledger(), SOON) as journal:
        await journal.append(entered(1))
        monkeypatch.setattr("orchestrator.rundir.append_file.Ballast.make", fail)
        monkeypatch.setattr("orchestrator.rundir.append_file.write_all", fail)
        for _ in range(2):
            with pytest.raises(JournalError, match="none left"):
                await journal.append(entered(2))
        with pytest.raises(JournalError, match="none left"):
            await journal.wait_writable()


async def test_a_closing_journal_waits_as_long_as_its_disk_is_known_to_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.rundir.journal._CLOSE_TIMEOUT_S", 0.0)
    async with Journal.open(folder, Ledger(), SOON) as journal:
        monkeypatch.setattr(os, "fsync", delayed(os.fsync, lambda: 0.2))
        await journal.append(entered(1))
        journal.append_nowait(entered(2))
    assert [event.kind for event, _ in read_events(folder / JOURNAL)] == ["stage.entered"] * 2
    assert not journal._writer.thread.is_alive()
