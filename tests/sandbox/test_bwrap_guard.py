"""Boxes that boot when the service dies do not stay behind half set up."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import anyio
import anyio.to_thread
import pytest

from orchestrator.service.sandbox.bwrap import spawner
from tests.processes import carrying
from tests.waiting import until

pytestmark = pytest.mark.anyio


FOLDER = Path(__file__).parents[2]
#: Two processes of one group, the second of which would outlive the first.
PAIR = 'sleep 1000 & echo "up $$" >&2; exec sleep 1000'
SERVICE = """
import os, sys, time
from orchestrator.service.sandbox.bwrap.spawner import Guard

guard = Guard()
readable, writable = os.pipe()
with open(writable, "wb") as errors:
    groups = [guard.start(["sh", "-c", sys.argv[1]], user=None, fds=(), errors=errors).pid for _ in range(3)]
with open(readable) as words:
    assert sorted(words.readline() for _ in groups) == sorted(f"up {{group}}\\n" for group in groups)
guard.forget(groups[1])
print(*groups, flush=True)
{end}
"""
HASTY = """
import os, signal, sys
from orchestrator.service.sandbox.bwrap.spawner import Guard

Guard().start(["sh", "-c", *sys.argv[1:]], user=None, fds=(), errors=sys.stderr)
os.kill(os.getpid(), signal.SIGKILL)
"""
UNGUARDED = """
import subprocess, sys
from orchestrator.service.sandbox.bwrap.spawner import Guard

guard = Guard()
guard._shell.kill()
guard._shell.wait()
started = guard.start(["sh", "-c", "kill -s PIPE $$"], user=None, fds=(), errors=sys.stderr)
print(started.wait())
guard.forget(started.pid)
guard.close()
"""


def group_is_alive(group: int) -> bool:
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


@pytest.mark.parametrize("end", ["time.sleep(1000)", "guard.close()"])
async def test_groups_that_boot_end_with_the_service_and_those_that_have_booted_are_left_alone(end: str) -> None:
    command = [sys.executable, "-c", SERVICE.format(end=end), PAIR]
    service = await anyio.to_thread.run_sync(lambda: subprocess.Popen(command, stdout=subprocess.PIPE, cwd=FOLDER))
    assert service.stdout is not None
    first, forgotten, last = map(int, (await anyio.to_thread.run_sync(service.stdout.readline)).split())
    try:
        if "sleep" in end:
            service.send_signal(signal.SIGKILL)
        await until(lambda: not group_is_alive(first) and not group_is_alive(last), "those that boot are gone")
        assert group_is_alive(forgotten)
    finally:
        os.killpg(forgotten, signal.SIGKILL)
        service.kill()
        service.wait()
        service.stdout.close()


async def test_a_service_killed_before_it_knows_what_it_started_leaves_nothing(marker: str) -> None:
    command = [sys.executable, "-c", HASTY, "while :; do sleep 1000; done", marker]
    service = await anyio.run_process(command, cwd=FOLDER, check=False, stdout=None, stderr=None)
    assert service.returncode == -signal.SIGKILL
    try:
        await until(lambda: not carrying(marker), "it is gone")
    finally:
        for pid in carrying(marker):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize("is_gnu", [True, False])
async def test_a_program_of_another_user_has_no_other_user_and_no_group_of_ours(
    monkeypatch: pytest.MonkeyPatch, *, is_gnu: bool
) -> None:
    if not is_gnu:
        monkeypatch.setattr(spawner, "_try_another_user", lambda: False)
    elif not spawner._try_another_user():
        pytest.skip("this is no GNU system")
    with TemporaryFile() as errors:
        guard = await anyio.to_thread.run_sync(spawner.Guard)
        words = ["sed", "-n", "w /dev/stderr", "/proc/self/status"]
        started = await anyio.to_thread.run_sync(lambda: guard.start(words, user=7, fds=(), errors=errors))
        assert await anyio.to_thread.run_sync(started.wait) == 0
        await anyio.to_thread.run_sync(guard.close)
        errors.seek(0)
        said = dict(line.split(":\t", 1) for line in errors.read().decode().splitlines() if ":\t" in line)
    assert said["Uid"].split() == said["Gid"].split() == ["7"] * 4
    assert said["Groups"].split() == []
    assert int(said["CapEff"], 16) == int(said["CapPrm"], 16) == 0


async def test_a_killed_guard_does_not_hinder_later_programs() -> None:
    """Programs started then run as ever, and signals mean to them what they always do."""
    ended = await anyio.run_process([sys.executable, "-c", UNGUARDED], cwd=FOLDER)
    assert int(ended.stdout) == -signal.SIGPIPE
