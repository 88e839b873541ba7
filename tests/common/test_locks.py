"""One process at a time in a folder, on file systems with locks and without."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.common import locks
from orchestrator.common.locks import LOCK, NOTE, Held, Note, birth, hold, holder, noted
from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import LockKind


def says(error: int) -> None:
    """Answers of a file system without locks."""

    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    fcntl.flock = refuse


@pytest.fixture
def flock() -> Iterator[None]:
    """Undoes what a test makes of flock: this kernel has no file system that refuses or grants all locks."""
    before = fcntl.flock
    yield
    fcntl.flock = before


@pytest.fixture
def other(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that is at work in the folder without a lock, and ends when it is told to, or killed."""
    script = "import sys; from pathlib import Path; from orchestrator.common.locks import hold\n"
    script += "with hold(Path(sys.argv[1]), 'none'): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("kind", ["file", "none"])
@pytest.mark.parametrize("second", ["file", "none"])
def test_two_cannot_be_at_work_in_a_folder_whether_they_lock_or_not(
    tmp_path: Path, kind: LockKind, second: LockKind
) -> None:
    with hold(tmp_path, kind):
        with pytest.raises(Held, match=f"process {os.getpid()} on {os.uname().nodename}"), hold(tmp_path, second):
            pass
        found = holder(tmp_path)
        assert found is not None
        assert found[0] == f"process {os.getpid()} on {os.uname().nodename}"
    assert holder(tmp_path) is None
    with hold(tmp_path, second):
        pass


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks_is_named_with_a_way_and_the_way_works(
    tmp_path: Path, flock: None, error: int
) -> None:
    says(error)
    with pytest.raises(UsageError) as caught, hold(tmp_path):
        pass
    for words in (str(tmp_path), os.strerror(error), "--lock none", "local disk"):
        assert words in caught.value.message
    with hold(tmp_path, "none"):
        assert holder(tmp_path) is not None
        with pytest.raises(Held, match="without a lock"), hold(tmp_path, "none"):
            pass
    assert holder(tmp_path) is None


def test_locks_that_everybody_gets_are_found_out(tmp_path: Path, flock: None) -> None:
    fcntl.flock = lambda *_: None
    with pytest.raises(UsageError, match=r"keep nobody out.*--lock none"), hold(tmp_path):
        pass
    with hold(tmp_path, "none"):
        with pytest.raises(Held, match="without a lock"), hold(tmp_path, "none"):
            pass
        assert holder(tmp_path) is not None


def test_a_process_without_a_lock_that_was_killed_is_known_to_be_gone(
    tmp_path: Path, other: "subprocess.Popen[str]", flock: None
) -> None:
    says(errno.ENOLCK)
    found = holder(tmp_path)
    assert found is not None
    assert found[1] is not None
    assert (found[1].pid, found[1].is_here) == (other.pid, True)
    with pytest.raises(Held, match=f"process {other.pid} "), hold(tmp_path, "none"):
        pass
    other.kill()
    other.wait()
    assert (tmp_path / NOTE).exists()
    assert holder(tmp_path) is None
    with hold(tmp_path, "none"):
        assert noted(tmp_path) == Note.ours()
    assert not (tmp_path / NOTE).exists()


def note(folder: Path, **changes: object) -> None:
    facts = {"pid": os.getpid(), "host": os.uname().nodename, "birth": birth(os.getpid()), "space": Note.ours().space}
    (folder / NOTE).write_text(json.dumps(facts | changes))


@pytest.mark.parametrize(
    "changes",
    [{"host": "elsewhere"}, {"space": "pid:[1]"}, {"pid": "torn", "more": 1}],
    ids=["another machine", "another container", "torn"],
)
@pytest.mark.parametrize("kind", ["file", "none"])
def test_a_note_of_a_process_that_cannot_be_seen_counts_and_says_how_it_is_removed(
    tmp_path: Path, kind: LockKind, changes: dict[str, object]
) -> None:
    note(tmp_path, **changes)
    with pytest.raises(Held) as caught, hold(tmp_path, kind):
        pass
    assert f"remove {tmp_path / NOTE}" in str(caught.value)
    (tmp_path / NOTE).unlink()
    with hold(tmp_path, kind):
        pass


def test_a_process_number_that_is_anothers_by_now_does_not_count(tmp_path: Path) -> None:
    note(tmp_path, birth=f"{birth(os.getpid())}0")
    with hold(tmp_path):
        pass
    with hold(tmp_path, "none"):
        pass


def test_the_quicker_process_keeps_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its note comes between the look and ours."""
    note(tmp_path, birth="of one that has ended")
    taken = locks._remove_stale_note

    def and_another_comes(folder: Path) -> None:
        taken(folder)
        note(folder, host="elsewhere")

    monkeypatch.setattr(locks, "_remove_stale_note", and_another_comes)
    with pytest.raises(Held, match="on elsewhere"), hold(tmp_path, "none"):
        pass
    assert Note.read(tmp_path / NOTE).host == "elsewhere"


def test_a_full_disk_leaves_no_torn_note(tmp_path: Path) -> None:
    """It would count as that of a live process, and keep everybody out."""
    script = "import resource, sys; from pathlib import Path; from orchestrator.common.locks import hold\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
    script += "with hold(Path(sys.argv[1]), 'none'): print('held')"
    command = [sys.executable, "-c", script, str(tmp_path)]
    full = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (full.returncode, full.stdout) == (1, "")
    assert "File too large" in full.stderr
    with hold(tmp_path, "none"):
        pass


def test_a_note_that_became_anothers_is_put_back(tmp_path: Path) -> None:
    note(tmp_path)
    locks._remove_stale_note(tmp_path)
    assert Note.read(tmp_path / NOTE) == Note.ours()
    assert [each.name for each in tmp_path.iterdir()] == [NOTE]


def test_the_lock_says_who_has_it(tmp_path: Path) -> None:
    with hold(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {os.uname().nodename}"
