"""What boots when the service dies does not stay behind half set up."""

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

pytestmark = pytest.mark.anyio

WaitUntil = Callable[[Callable[[], bool], str], Awaitable[None]]

SERVICE = """
import subprocess, time
from orchestrator.service.devboxes.local.guard import Guard

guard = Guard()
groups = [subprocess.Popen(["sh", "-c", "sleep 1000 & exec sleep 1000"], process_group=0).pid for _ in range(3)]
for group in groups:
    guard.watch(group)
guard.forget(groups[1])
print(*groups, flush=True)
{end}
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
async def test_groups_that_boot_end_with_the_service_and_those_that_have_booted_are_left_alone(
    end: str, wait_until: WaitUntil
) -> None:
    code, folder = SERVICE.format(end=end), Path(__file__).parents[2]
    service = await anyio.to_thread.run_sync(
        lambda: subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=folder)
    )
    assert service.stdout is not None
    first, forgotten, last = map(int, (await anyio.to_thread.run_sync(service.stdout.readline)).split())
    try:
        if "sleep" in end:
            service.send_signal(signal.SIGKILL)
        await wait_until(lambda: not group_is_alive(first) and not group_is_alive(last), "those that boot are gone")
        assert group_is_alive(forgotten)
    finally:
        os.killpg(forgotten, signal.SIGKILL)
        service.kill()
        service.wait()
        service.stdout.close()
