"""Limits of sandboxed boxes: what is said to be enforced is."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator.service.sandbox.base_provider import AgentBox
from orchestrator.service.sandbox.limits import Cgroup, Cgroups, own_name, remove_stale, unlimited
from orchestrator.service.sandbox.provider import BoxDied, Command, Limit, Resources

if TYPE_CHECKING:
    from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.anyio

FORKS = """
import os, signal, time
n = 0
try:
    while n < 500:
        if os.fork() == 0:
            time.sleep(1000)
        n += 1
except OSError:
    pass
print(n, flush=True)
time.sleep(1000)
"""


def enforced(box: AgentBox, limit: Limit) -> None:
    if limit not in box.enforced:
        pytest.skip(f"this machine cannot enforce {limit}")


async def test_processes_are_limited_for_each_box_alone(local: "Bench") -> None:
    counts = []
    processes = []
    for _ in range(2):
        box = await local.boot(resources=Resources(processes=40))
        enforced(box, Limit.PROCESSES)
        process = await box.spawn(Command(argv=("python3", "-c", FORKS)))
        counts.append(int(await process.stdout.receive()))
        processes.append(process)
    assert all(30 < count < 40 for count in counts)
    await processes[0].kill()
    assert (await local.run(local.boxes[0], "echo free again")).output == "free again\n"


async def test_a_box_full_of_processes_says_why_it_starts_no_more(local: "Bench") -> None:
    box = await local.boot(resources=Resources(processes=20))
    process = await box.spawn(Command(argv=("python3", "-c", FORKS)))
    await process.stdout.receive()
    refused = await box.spawn(Command(argv=("true",)))
    assert await refused.wait() == 126
    assert b"temporarily unavailable" in await refused.stderr.receive()


async def test_a_fork_bomb_ends_with_its_command_or_its_box(local: "Bench") -> None:
    box = await local.boot(resources=Resources(processes=60))
    process = await box.spawn(Command(argv=("bash", "-c", "bomb() { bomb | bomb & }; bomb; sleep 1000")))
    await anyio.sleep(0.3)
    with anyio.fail_after(12):
        await process.kill()


async def test_a_command_beyond_the_memory_is_killed_and_its_box_lives(local: "Bench") -> None:
    box = await local.boot(resources=Resources(memory=64 << 20))
    enforced(box, Limit.MEMORY)
    assert (await local.run(box, "exec python3 -c 'x = bytearray(200_000_000)'")).status == 137
    assert (await local.run(box, "echo alive")).output == "alive\n"


async def test_a_box_that_ends_for_want_of_memory_says_so(local: "Bench") -> None:
    box = await local.boot(resources=Resources(memory=24 << 20))
    enforced(box, Limit.MEMORY)
    with anyio.move_on_after(5), suppress(BoxDied):
        while True:
            await local.run(box, "head -c 50000000 /dev/zero > /dev/shm/full$$")
    if not box._dead.is_set():
        pytest.skip("the kernel always finds another process to end")
    assert await box.wait_dead() == "out of memory"


async def test_processors_are_shared_out(local: "Bench") -> None:
    box = await local.boot(resources=Resources(cpus=0.25))
    enforced(box, Limit.CPU)
    burn = "import time; start = time.process_time()\nwhile time.process_time() - start < 0.2: pass"
    started = time.perf_counter()
    assert (await local.run(box, f'exec python3 -c "{burn}"')).status == 0
    assert time.perf_counter() - started > 0.5


def test_groups_of_a_service_that_is_no_more_are_removed(tmp_path: Path) -> None:
    dead, living = tmp_path / "sweep-1-0-1", tmp_path / f"sweep-{own_name()}-1"
    (dead / "dbx-1").mkdir(parents=True)
    living.mkdir()
    remove_stale(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == [living.name]


def test_groups_of_a_killed_service_are_removed_though_its_parent_has_not_heard(tmp_path: Path) -> None:
    name = "from orchestrator.service.sandbox.limits import own_name; print(own_name(), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        group = tmp_path / f"sweep-{service.stdout.readline().decode().strip()}-1"
        (group / "dbx-1").mkdir(parents=True)
        remove_stale(tmp_path)
        assert group.exists()
        service.kill()
        os.waitid(os.P_PID, service.pid, os.WEXITED | os.WNOWAIT)
        remove_stale(tmp_path)
        assert not group.exists()


def test_services_that_start_at_once_may_remove_the_same_groups(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"sweep-1-never{number}-1" / "dbx-1").mkdir(parents=True)
    with ThreadPoolExecutor(4) as services:
        list(services.map(remove_stale, [tmp_path] * 4))
    assert not list(tmp_path.iterdir())


def test_without_control_groups_nothing_is_claimed(tmp_path: Path) -> None:
    group = Cgroups({}).create("dbx-1", Resources())
    assert group.enforced == frozenset()
    assert not group.out_of_memory()


def test_a_group_that_cannot_be_made_claims_nothing(tmp_path: Path) -> None:
    group = Cgroups({Limit.MEMORY: tmp_path / "missing"}).create("dbx-1", Resources())
    assert group.enforced == frozenset()


@pytest.mark.parametrize("name", ["memory.events", "memory.oom_control"])
def test_kills_for_want_of_memory_are_read_in_both_versions(tmp_path: Path, name: str) -> None:
    group = Cgroup(folders={Limit.MEMORY: tmp_path})
    (tmp_path / name).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    assert not group.out_of_memory()
    (tmp_path / name).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert group.out_of_memory()


async def test_a_provider_says_what_its_boxes_are_held_to(bench: "Bench") -> None:
    box = await bench.boot()
    assert bench.provider.enforced == box.enforced


def test_there_is_no_warning_where_every_limit_is_enforced() -> None:
    assert list(unlimited(frozenset(Limit))) == []


def test_an_ordinary_user_is_told_how_to_get_a_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    (notice,) = unlimited({Limit.DISK, Limit.PROCESSES})
    assert notice == (
        "One devbox can take all there is of memory, CPU here. For limits: start the service, or the sweep that starts "
        "it, as `systemd-run --user --scope -p Delegate=yes sweep ...`."
    )


def test_without_sandboxes_processes_are_not_counted_and_that_is_said() -> None:
    (notice,) = unlimited({Limit.DISK, Limit.MEMORY, Limit.CPU})
    assert "number of processes here" in notice
    assert notice.endswith("For limits: processes are counted in sandboxes only (--isolation local).")
