"""The disk of a box is all that it takes, whether a folder shows it or not."""

import errno
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator.service.sandbox import disk
from orchestrator.service.sandbox.disk import DiskWatch, TooManyFiles, WatchedBox, measure, unlinked_usage
from orchestrator.service.sandbox.processes import descendants
from orchestrator.service.sandbox.provider import BoxDied, Command, Resources

if TYPE_CHECKING:
    from orchestrator.service.sandbox.base_provider import AgentBox
    from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.anyio

MEGABYTE = 1_000_000
#: Each opens a file that no folder shows when it is written to.
UNSEEN = {
    "unlinked": "open('f', 'w+b', 0); os.unlink('f')",
    "never named": "os.fdopen(os.open('.', os.O_RDWR | os.O_TMPFILE), 'w+b', 0)",
}
FILL = """
import mmap, os, sys, time
kept = []
for _ in range({count}):
    file = {opened}
    for _ in range(15):
        file.write(bytes(1_000_000))
    kept.append({kept})
del file
{then}
print("filled", flush=True)
time.sleep(1000)
"""


def fill(opened: str, *, count: int = 2, kept: str = "file", then: str = "") -> Command:
    """A program that takes 15 MB `count` times, and keeps them."""
    return Command(argv=("python3", "-c", FILL.format(opened=opened, count=count, kept=kept, then=then)))


def may_see_mappings() -> bool:
    with tempfile.TemporaryFile() as file:
        held = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=file)
        try:
            names = list(Path(f"/proc/{held.pid}/map_files").iterdir())
            return bool(names) and names[0].exists()
        except OSError:
            return False
        finally:
            held.communicate()


async def filled(bench: "Bench", command: Command) -> "AgentBox":
    box = await bench.boot()
    process = await box.spawn(command)
    assert (await process.stdout.receive()).startswith(b"filled\n")  # each process that it forked says so
    return box


def measured(bench: "Bench", box: "AgentBox") -> float:
    return measure(bench.provider.watch._boxes[box.folder.files]) / MEGABYTE


@pytest.mark.slow
async def test_a_box_that_writes_what_it_has_unlinked_is_out_of_disk(
    bench: "Bench", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "PAUSE_RATIO", 0.0)  # a busy machine makes looks long, and the pauses after them
    monkeypatch.setattr(disk, "MAX_PAUSE_S", 1.0)  # what others remove meanwhile hides writing
    box = await bench.boot(resources=Resources(disk=20 << 20))
    process = await box.spawn(fill(UNSEEN["unlinked"]))
    with anyio.fail_after(15):
        assert "out of disk" in await box.wait_dead()
        with pytest.raises(BoxDied, match="out of disk"):
            await process.wait()


@pytest.mark.parametrize("how", UNSEEN)
async def test_files_that_no_folder_shows_are_counted(bench: "Bench", how: str) -> None:
    box = await filled(bench, fill(UNSEEN[how]))
    assert 30 <= measured(bench, box) < 32


async def test_a_file_that_many_hold_is_counted_once(bench: "Bench") -> None:
    """By another descriptor, by a child, and by a daemon that left its session and its parents."""
    leave = "kept.append(os.dup(kept[0].fileno()))\nos.fork() or (os.setsid(), os.fork() and os._exit(0))"
    box = await filled(bench, fill(UNSEEN["unlinked"], then=leave))
    assert 30 <= measured(bench, box) < 32


async def test_a_file_that_is_only_mapped_is_counted(bench: "Bench") -> None:
    if not may_see_mappings():
        pytest.skip("only who may checkpoint processes sees what they have mapped")
    box = await filled(
        bench, fill(UNSEEN["unlinked"], kept="mmap.mmap(file.fileno(), 4096)", then="os.closerange(3, 99)")
    )
    assert 30 <= measured(bench, box) < 32


async def test_memory_is_not_disk(bench: "Bench") -> None:
    box = await filled(bench, fill("os.fdopen(os.memfd_create('f'), 'w+b', 0)"))
    assert measured(bench, box) < 1


async def test_files_that_are_open_and_in_a_folder_are_counted_once(bench: "Bench") -> None:
    box = await filled(bench, fill("open('f', 'w+b', 0)", count=1))
    assert 15 <= measured(bench, box) < 16


async def test_files_that_others_unlinked_are_not_the_boxs(bench: "Bench") -> None:
    box = await bench.boot()
    with tempfile.TemporaryFile(dir=bench.provider.state) as ours:
        ours.write(bytes(9 * MEGABYTE))
        assert measured(bench, box) < 1


async def test_a_box_cannot_make_looks_long_by_holding_much(bench: "Bench", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MAX_HELD_FILES", 500)
    box = await filled(bench, fill("open('f', 'w+b', 0)", count=1, then="kept += [os.dup(0) for _ in range(600)]"))
    with pytest.raises(TooManyFiles, match="more than"):
        measured(bench, box)


async def test_files_that_others_remove_do_not_hide_what_a_box_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice 15 MB are written, and 60 removed between: on balance nothing."""
    free = itertools.chain([100, 85, 145], itertools.repeat(130))
    monkeypatch.setattr(DiskWatch, "_free", lambda _: (next(free) * MEGABYTE, 0))
    monkeypatch.setattr(disk, "TICK_S", 0.01)
    (tmp_path / "file").write_bytes(bytes(30 * MEGABYTE))
    watch, ended = DiskWatch(tmp_path), anyio.Event()
    box = WatchedBox(
        folder=tmp_path,
        limit=20 << 20,
        exceeded=lambda _: ended.set(),
        lost=lambda _: None,
        pids=tuple,
        owners=range(os.geteuid(), os.geteuid() + 1),
    )
    watch.add(box)
    with anyio.fail_after(15):
        await ended.wait()
    await watch.close()


async def test_a_look_that_fails_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another box too: one task looks at all of them."""
    monkeypatch.setattr(disk, "TICK_S", 0.01)
    monkeypatch.setattr(disk, "MAX_PAUSE_S", 0.0)
    failures = [OSError(errno.EMFILE, "no descriptor is free")] * 3

    def pids() -> tuple[int, ...]:
        if failures:
            raise failures.pop()
        return ()

    (tmp_path / "file").write_bytes(bytes(30 * MEGABYTE))
    watch, ended = DiskWatch(tmp_path), anyio.Event()
    watch.add(
        WatchedBox(
            folder=tmp_path,
            limit=20 << 20,
            exceeded=lambda _: ended.set(),
            lost=lambda _: None,
            pids=pids,
            owners=range(os.geteuid(), os.geteuid() + 1),
        )
    )
    with anyio.fail_after(15):
        await ended.wait()
    await watch.close()


def test_looking_at_a_thousand_descriptors_takes_milliseconds() -> None:
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1000)]
    started = time.process_time()
    assert unlinked_usage(descendants(os.getpid())[:1], device=0, owners=range(1)) == 0
    assert time.process_time() - started < 0.2
    for each in held:
        os.close(each)
