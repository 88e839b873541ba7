"""Scenes of a journal on a small disk: run as a program, in a mount namespace of its own, by its tests.

python scenes.py SCENE FOLDER      FOLDER is an empty tmpfs of 20 MiB, except for `grown`, which needs none
"""

import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import orjson
import structlog

from orchestrator.common import logging_setup
from orchestrator.core.errors import JournalError
from orchestrator.core.events import AttemptEvent, Event, TrialFinished
from orchestrator.core.ledger import Ledger
from orchestrator.rundir.append_file import BALLAST
from orchestrator.rundir.files import JOURNAL, RESULTS
from orchestrator.rundir.journal import Journal, JournalSettings
from tests.waiting import until

QUICK = JournalSettings(retry=0.05)


@dataclass(eq=False)
class Told(Ledger):
    events: list[Event] = field(default_factory=list)

    def apply(self, event: Event) -> None:
        super().apply(event)
        self.events.append(event)

    @property
    def told(self) -> list[str]:
        return [event.trial for event in self.events if isinstance(event, AttemptEvent)]


def finished(number: int, padding: int = 100) -> TrialFinished:
    return TrialFinished(
        trial=f"s{number}/a/1", attempt=1, result={"scenario": f"s{number}", "outcome": "scored", "x": "x" * padding}
    )


def in_file(folder: Path) -> list[str]:
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    return [orjson.loads(line)["trial"] for line in lines if line.endswith(b"\n")]


def assert_derived(folder: Path) -> None:
    lines = (folder / JOURNAL).read_bytes().splitlines()
    wanted = b"".join(orjson.dumps(orjson.loads(line)["result"]) + b"\n" for line in lines)
    assert (folder / RESULTS).read_bytes() == wanted


def fill(folder: Path) -> None:
    """Leave no room at all."""
    with suppress(OSError), (folder.parent / f"filler-{time.monotonic_ns()}").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while file.write(b"\0" * size):
                    pass


def make_room(folder: Path) -> None:
    for filler in folder.parent.glob("filler-*"):
        filler.unlink()


async def full(folder: Path) -> None:
    """The ballast is given up, everything in flight is written, nothing new is to begin; then all is well again."""
    async with Journal.open(folder, ledger := Told(), QUICK) as journal:
        await journal.append(finished(0))
        await until((folder / BALLAST).exists, "there is no ballast")
        fill(folder)
        number = 0
        while "less than 16 MiB left" not in str(journal.trouble):
            number += 1
            await journal.append(finished(number))
        assert not (folder / BALLAST).exists()
        await journal.append(finished(number + 1))
        with anyio.move_on_after(0.1) as scope:
            await journal.wait_writable()
        assert scope.cancelled_caught
        make_room(folder)
        with anyio.fail_after(20):
            await journal.wait_writable()
        assert journal.trouble is None
        assert (folder / BALLAST).stat().st_size == 16 << 20
        await journal.append(finished(number + 2))
        assert ledger.told == in_file(folder) == [f"s{each}/a/1" for each in range(number + 3)]
        assert_derived(folder)
    assert not (folder / BALLAST).exists()


async def full_for_long(folder: Path) -> None:
    """An append waits, can be canceled, and returns when it is done; nothing is lost or doubled."""
    async with Journal.open(folder, ledger := Told(), QUICK) as journal, anyio.create_task_group() as tasks:
        number = await fill_up(journal, folder)
        with anyio.move_on_after(0.1) as scope:
            await journal.append(finished(number))
        assert scope.cancelled_caught
        for each in range(1, 5):
            tasks.start_soon(journal.append, finished(number + each, 9000))
        await anyio.sleep(0.3)
        assert len(in_file(folder)) == number - 1
        assert str(journal.trouble).endswith(
            "No space left on device. Waiting for room on its disk, 10 minutes at most."
        )
        make_room(folder)
        await journal.append(finished(number + 5))
        assert ledger.told == in_file(folder) == [f"s{each}/a/1" for each in range(number + 6)]
        assert_derived(folder)
        await journal.wait_writable()


async def given_up(folder: Path) -> None:
    """Appends fail at once after the last wait, and answered ones are kept; with room it goes on."""
    async with Journal.open(folder, Told(), JournalSettings(retry=0.05, patience=0.5)) as journal:
        number = await fill_up(journal, folder)
        for each in range(2):
            try:
                await journal.append(finished(number + each))
            except JournalError as error:
                assert "cannot be written: [Errno 28] No space left" in error.message  # noqa: PT017
            else:
                raise AssertionError
        try:
            await journal.wait_writable()
        except JournalError:
            pass
        else:
            raise AssertionError
        promised = in_file(folder)
    await again(folder, promised)


async def closed(folder: Path) -> None:
    """Closing waits for no disk: what was not written was promised to nobody."""
    async with Journal.open(folder, Told(), QUICK) as journal:
        number = await fill_up(journal, folder)
        promised = in_file(folder)
        journal.append_nowait(*(finished(number + each) for each in range(10)))
        began = time.monotonic()
    assert time.monotonic() - began < 3
    await again(folder, promised)


async def again(folder: Path, promised: list[str]) -> None:
    """Open the folder in a process while the disk is full, and in another when it is not."""
    try:
        async with Journal.open(folder, Told()):
            pass
    except JournalError as error:
        assert "cannot be opened" in error.message  # noqa: PT017
    make_room(folder)
    async with Journal.open(folder, ledger := Told(), QUICK) as journal:
        assert ledger.told[: len(promised)] == promised
        await journal.append(finished(1000))
        assert ledger.told == in_file(folder)
        assert_derived(folder)


async def read_only(folder: Path) -> None:
    """A folder that is read-only for a while is waited for."""
    async with Journal.open(folder, ledger := Told(), QUICK) as journal:
        number = await fill_up(journal, folder)
        with protected(folder):
            await until(
                lambda: "Read-only file system. Waiting for it to be writable" in str(journal.trouble),
                "no trouble is told",
            )
        make_room(folder)
        await journal.append(finished(number))
        assert ledger.told == in_file(folder) == [f"s{each}/a/1" for each in range(number + 1)]
        assert_derived(folder)
    try:
        with protected(folder):
            async with Journal.open(folder, Told()):
                raise AssertionError
    except JournalError as error:
        assert "cannot be opened: [Errno 30] Read-only" in error.message  # noqa: PT017


@contextmanager
def protected(folder: Path) -> Iterator[None]:
    """Read-only for whoever opens a file by its path; a disk with files open to be written cannot be made so."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


async def logged(folder: Path) -> None:
    """A full disk never raises out of a log call; a line is there as a whole or not at all, and goes on with room."""
    path = folder / "sweep.log"
    logging_setup.to_file(path)
    log = structlog.get_logger()
    log.info("before")
    fill(folder)
    for _ in range(100):
        log.info("lost", padding="x" * 1000)
    make_room(folder)
    log.info("after")
    said = [orjson.loads(line)["event"] for line in path.read_bytes().splitlines()]
    assert (said[0], said[-1]) == ("before", "after")
    assert 2 <= len(said) < 20


async def cut_short(folder: Path) -> None:
    """A limit on file sizes stops a write in the middle of a line, as a full disk does, and then lets it go on."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with Journal.open(folder, ledger := Told(), QUICK) as journal:
        for number in range(10):
            await journal.append(finished(number))
        resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / JOURNAL).stat().st_size + 100, limit[1]))
        journal.append_nowait(finished(10), finished(11))
        await until(lambda: "File too large. Waiting for the disk" in str(journal.trouble), "no trouble is told")
        assert len(in_file(folder)) == 10
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        await journal.append(finished(12))
        assert ledger.told == in_file(folder) == [f"s{each}/a/1" for each in range(13)]
        assert_derived(folder)
        await journal.wait_writable()


async def fill_up(journal: Journal, folder: Path) -> int:
    """Append until the disk is so full that even what is in flight is refused; all but the last are durable."""
    sent = [finished(0)]
    await journal.append(*sent)
    await until((folder / BALLAST).exists, "there is no ballast")
    while "cannot be written" not in str(journal.trouble):
        fill(folder)
        sent.append(finished(len(sent), 9000))
        journal.append_nowait(sent[-1])
        await until(lambda: "cannot be written" in str(journal.trouble) or len(in_file(folder)) == len(sent), "no end")
    assert len(in_file(folder)) == len(sent) - 1
    return len(sent)


async def main() -> None:
    scene: Callable[[Path], Awaitable[None]] = globals()[sys.argv[1]]
    folder = Path(sys.argv[2]) / "sweep"
    folder.mkdir()
    await scene(folder)


if __name__ == "__main__":
    anyio.run(main)
