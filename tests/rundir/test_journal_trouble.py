"""A disk that refuses: it is waited for, nothing that was promised is lost, and nothing is written twice."""

import errno
import os
import re
import shutil
from pathlib import Path
from subprocess import run
from sys import executable

import anyio
import pytest

from orchestrator.core.errors import JournalError
from orchestrator.rundir.append_file import BALLAST
from orchestrator.rundir.files import JOURNAL, RESULTS
from orchestrator.rundir.journal import Journal, JournalSettings, read_events
from tests.waiting import until

from .conftest import Told, entered, finished, scenarios

pytestmark = pytest.mark.anyio

SCENES = str(Path(__file__).with_name("scenes.py"))
MOUNT = 'mount -t tmpfs -o size=20m tmpfs "$1" && exec "$2" "$3" "$4" "$1"'
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def play(*command: str) -> None:
    ended = run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("scene", ["full", "full_for_long", "given_up", "closed", "read_only", "logged"])
def test_on_a_small_disk(scene: str, tmp_path: Path) -> None:
    """Each scene says what it claims; its disk is a tmpfs in a namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    mount = ["sh", "-c", MOUNT, "sh", str(tmp_path)]
    if run([*NAMESPACE, *mount, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount in a namespace")
    play(*NAMESPACE, *mount, executable, SCENES, scene)


def test_a_write_that_is_cut_short_is_cut_off_and_written_again(tmp_path: Path) -> None:
    play(executable, SCENES, "cut_short", str(tmp_path))


@pytest.fixture
def no_wait() -> JournalSettings:
    return JournalSettings(retry=0.02, ballast=0)


async def test_events_that_a_failed_sync_may_have_dropped_are_written_again(
    folder: Path, no_wait: JournalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux calls a page clean that it could not write: the next sync succeeds, and the data is gone."""
    failures = [OSError(errno.EIO, os.strerror(errno.EIO))] * 3
    sync = os.fsync

    def drop(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").resolve()
        if path.name == JOURNAL and failures:
            durable = path.read_bytes().find(b'{"event":"stage.entered"')
            path.write_bytes(path.read_bytes()[:durable] + b"\0" * 10)
            raise failures.pop()
        sync(fd)

    async with Journal.open(folder, told := Told(), no_wait) as journal:
        await journal.append(finished(1))
        monkeypatch.setattr(os, "fsync", drop)
        await journal.append(entered(2), entered(3))
        await journal.append(finished(4))
        assert failures == []
        assert told.events == [event for event, _ in read_events(folder / JOURNAL)]
    assert len(told.events) == 4


def put_back(kept: str, path: Path) -> None:
    path.parent.mkdir()
    shutil.copy(kept, path)


async def test_a_journal_that_was_deleted_can_be_put_back_from_what_still_has_it(
    folder: Path, no_wait: JournalSettings
) -> None:
    async with Journal.open(folder, told := Told(), no_wait) as journal, anyio.create_task_group() as tasks:
        await journal.append(finished(1), entered(2))
        shutil.rmtree(folder)
        tasks.start_soon(journal.append, finished(3))
        await until(lambda: journal.trouble, "the journal has no trouble")
        kept = re.search(
            r"It was deleted; copy it back from (/proc/\S+)\. Waiting for it to be back", journal.trouble or ""
        )
        assert kept is not None
        put_back(kept[1], folder / JOURNAL)
        await journal.wait_writable()
        await journal.append(finished(4))
        assert told.events == [event for event, _ in read_events(folder / JOURNAL)]
        assert scenarios(folder) == ["s1", "s3", "s4"]


async def test_another_file_in_the_journals_place_is_not_written_to(folder: Path) -> None:
    async with Journal.open(folder, Told(), JournalSettings(retry=0.02, patience=0.2, ballast=0)) as journal:
        await journal.append(entered(1), entered(2))
        content = (folder / JOURNAL).read_bytes()
        for other in (b"", content[:-1], content.upper() + content):
            (folder / JOURNAL).unlink()
            (folder / JOURNAL).write_bytes(other)
        for _ in range(2):
            with pytest.raises(JournalError, match=r"changed by somebody else .* it has \d+ bytes, not the"):
                await journal.append(entered(3))
        assert (folder / JOURNAL).read_bytes() == other
        with pytest.raises(JournalError, match="changed by somebody else"):
            await journal.wait_writable()
        journal.append_nowait(entered(5))


async def test_deleted_results_are_rebuilt_with_the_next_one(folder: Path, no_wait: JournalSettings) -> None:
    async with Journal.open(folder, Told(), no_wait) as journal:
        await journal.append(finished(1))
        (folder / RESULTS).unlink()
        await journal.append(finished(2))
        assert scenarios(folder) == ["s1", "s2"]
        assert journal.trouble is None


async def test_results_that_cannot_be_written_are_trouble_too(folder: Path, no_wait: JournalSettings) -> None:
    async with Journal.open(folder, Told(), no_wait) as journal, anyio.create_task_group() as tasks:
        await journal.append(finished(1))
        (folder / RESULTS).unlink()
        (folder / RESULTS).mkdir()
        tasks.start_soon(journal.append, finished(2))
        await until(lambda: journal.trouble, "the journal has no trouble")
        assert "Is a directory. Waiting for the disk" in (journal.trouble or "")
        (folder / RESULTS).rmdir()
        await journal.wait_writable()
        assert scenarios(folder) == ["s1", "s2"]


async def test_ballast_is_held_while_the_journal_is_open(folder: Path) -> None:
    async with Journal.open(folder, Told()) as journal:
        await journal.append(entered(1))
        await until((folder / BALLAST).exists, "there is no ballast")
        await until(lambda: (folder / BALLAST).stat().st_blocks * 512 >= 16 << 20, "it stays small")
    assert not (folder / BALLAST).exists()
