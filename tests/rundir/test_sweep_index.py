"""Sweeps found in a runs folder, and who is at work in one."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import orjson
import pytest

from orchestrator.common.locks import LOCK
from orchestrator.core.errors import JournalError, UsageError
from orchestrator.core.events import SweepEnded, SweepOpened, TrialFinished, to_line
from orchestrator.core.ledger import Ledger
from orchestrator.rundir.append_file import Checksum
from orchestrator.rundir.checkpoint import Folded, save
from orchestrator.rundir.files import JOURNAL, MANIFEST, locked
from orchestrator.rundir.journal import Reader
from orchestrator.rundir.manifest import read_manifest
from orchestrator.rundir.sweep_index import as_typed, find, find_running, find_unfinished, holder, is_finished

IDENTITY = {"sweep": "0190", "identity": {}, "config": {}, "scenarios": {}}


def make(runs: Path, name: str, *, trials: int = 0) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(orjson.dumps(IDENTITY | {"trials": trials}))
    return folder


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock of `busy`, until it is asked for its end."""
    folder = make(tmp_path, "busy", trials=1)
    script = "import sys; from pathlib import Path; from orchestrator.rundir.files import locked\n"
    script += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_sweep_is_found_by_its_name_or_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = make(tmp_path / "runs", "mine")
    assert find(tmp_path / "runs", "mine") == find(tmp_path / "elsewhere", str(mine)) == mine
    monkeypatch.chdir(mine)
    assert find(tmp_path / "elsewhere", ".").name == "mine"


def test_a_folder_that_its_name_does_not_find_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SWEEP_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    near, far = make(Path("runs"), "mine"), make(Path("else where"), "mine")
    assert (as_typed(near), as_typed(near.resolve()), as_typed(far)) == ("mine", "mine", "'else where/mine'")
    monkeypatch.setenv("SWEEP_RUNS", "else where")
    assert (as_typed(near), as_typed(far)) == ("runs/mine", "mine")


def test_a_journal_is_read_from_its_checkpoint_on(tmp_path: Path) -> None:
    events = [SweepOpened(sweep="0190", schema=1, version="0", pid=1), SweepEnded(reason="stopped: r0")]
    (tmp_path / JOURNAL).write_bytes(b"".join(map(to_line, events)))
    folded = Folded(journal=Checksum().read(tmp_path / JOURNAL, len(to_line(events[0]))), lines=1)
    save(tmp_path, Ledger(opened=7), folded)
    reader = Reader(tmp_path)
    assert (reader.ledger.opened, reader.ledger.ended) == (7, "stopped: r0")
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(to_line(events[0]) + b"what\n")
    with pytest.raises(JournalError, match="line 4, byte"):
        reader.read()


def test_readers_of_a_run_folder_never_block_its_sweep(tmp_path: Path) -> None:
    """To look is to hold the lock for an instant."""
    folder = make(tmp_path, "mine")
    with locked(folder):
        pass
    with (folder / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        done = Timer(0.02, fcntl.flock, (lock, fcntl.LOCK_UN))
        done.start()
        with locked(folder):
            done.join()


def test_an_unknown_name_is_answered_with_near_ones(tmp_path: Path) -> None:
    make(tmp_path, "nightly-1")
    make(tmp_path, "other")
    with pytest.raises(UsageError, match=r"no sweep 'nigtly-1' in .* Did you mean nightly-1\?"):
        find(tmp_path, "nigtly-1")
    with pytest.raises(UsageError, match=r"There are: (other, nightly-1|nightly-1, other)\."):
        find(tmp_path, "zzz")
    make(tmp_path / "odd", "two\nlines")
    with pytest.raises(UsageError, match=r"There are: two\\nlines\."):
        find(tmp_path / "odd", "zzz")


def test_the_newest_unfinished_sweep_is_found(tmp_path: Path) -> None:
    older, _, damaged = make(tmp_path, "older", trials=1), make(tmp_path, "newer", trials=1), make(tmp_path, "bad")
    (damaged / MANIFEST).write_text("{")
    os.utime(older / MANIFEST, (1, 1))
    assert find_unfinished(tmp_path).name == "newer"
    with pytest.raises(UsageError, match=r"no unfinished sweep in .*nowhere"):
        find_unfinished(tmp_path / "nowhere")


def test_nobody_is_at_work_in_a_folder_whose_lock_is_free(tmp_path: Path) -> None:
    folder = make(tmp_path, "mine")
    assert holder(folder) is None
    with locked(folder):
        found = holder(folder)
        assert found is not None
        assert (found.pid, found.name) == (os.getpid(), f"process {os.getpid()} on {os.uname().nodename}")
    assert (folder / LOCK).exists()
    assert holder(folder) is None


def test_the_running_sweep_is_found_with_its_process(tmp_path: Path, at_work: "subprocess.Popen[str]") -> None:
    make(tmp_path, "idle", trials=1)
    folder = find_running(tmp_path)
    found = holder(folder)
    assert found is not None
    assert (folder.name, found.pid) == ("busy", at_work.pid)
    other = make(tmp_path, "other")
    with locked(other), pytest.raises(UsageError, match=r"name one: (busy, other|other, busy)\."):
        find_running(tmp_path)
    at_work.send_signal(signal.SIGKILL)
    at_work.wait()
    assert holder(folder) is None
    with pytest.raises(UsageError, match=r"No sweep of .* is running"):
        find_running(tmp_path)


@pytest.mark.parametrize("words", ["process {} on elsewhere", "process 1 on {}", "process 99999999 on {}", "", "ä\n"])
def test_a_process_that_is_not_surely_the_holder_has_no_number(
    tmp_path: Path, at_work: "subprocess.Popen[str]", words: str
) -> None:
    """Of another machine, another process by now, or nobody knows: it must not be signaled."""
    folder = find_running(tmp_path)
    name = at_work.pid if words.endswith("elsewhere") else os.uname().nodename
    (folder / LOCK).write_text(words.format(name))
    found = holder(folder)
    assert found is not None
    assert found.pid is None
    assert found.name


def test_a_journal_is_read_as_it_grows_and_a_torn_line_once_it_is_whole(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    assert reader.read() == []
    lines = [orjson.dumps({"event": "sweep.ended", "reason": f"r{number}"}) + b"\n" for number in range(3)]
    with (tmp_path / JOURNAL).open("wb", buffering=0) as journal:
        journal.write(lines[0] + lines[1][:9])
        assert reader.read() == [SweepEnded(reason="r0")]
        assert reader.read() == []
        journal.write(lines[1][9:] + lines[2])
        assert reader.read() == [SweepEnded(reason="r1"), SweepEnded(reason="r2")]
        journal.write(b"what\n{}\n")
        with pytest.raises(JournalError, match=rf"line 4, byte {sum(map(len, lines))}"):
            reader.read()


@pytest.mark.parametrize(("reason", "is_over"), [("finished", True), ("interrupted: SIGINT", False)])
def test_a_sweep_that_was_stopped_is_not_finished_for_results_of_trials_that_are_no_longer_asked_for(
    tmp_path: Path, reason: str, *, is_over: bool
) -> None:
    folder = make(tmp_path, "mine", trials=1)
    finished = [TrialFinished(trial=f"{name}/a/1", attempt=1, result={}) for name in ("first", "second")]
    lines = [to_line(event) for event in (*finished, SweepEnded(reason=reason))]
    (folder / JOURNAL).write_bytes(b"".join(lines))
    assert is_finished(folder, read_manifest(folder)) == is_over
