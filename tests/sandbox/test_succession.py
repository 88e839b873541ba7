"""The files of a box whose processes have ended: other boxes are started beside it, over them."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator.service.sandbox.base_provider import AgentBox
from orchestrator.service.sandbox.provider import Bind, BoxDied, BoxStartFailed, Command, RemainingProcesses, Resources
from tests.waiting import until

if TYPE_CHECKING:
    from .conftest import Bench

pytestmark = pytest.mark.anyio
LISTEN = "import socket, time; s = socket.socket({}); s.bind({}); s.listen(); print(flush=True); time.sleep(1000)"


async def test_a_retired_box_keeps_its_files_and_nothing_that_ran(local: "Bench", marker: str) -> None:
    box = await local.boot()
    await local.run(box, f"echo kept > /app/file; MARK={marker} setsid sleep 1000 & sleep 0.2")
    await box.retire()
    assert await box.wait_dead() == "retired"
    assert (box.place("/app") / "file").read_text() == "kept\n"
    with pytest.raises(BoxDied, match="retired"):
        await local.run(box, "true")
    await box.stop()
    assert not box.folder.base.exists()


async def test_another_box_reads_and_writes_the_files_of_one_beside_it(local: "Bench") -> None:
    box = await local.boot()
    await local.run(box, "umask 077; echo first > /app/file; echo mine > /tmp/file")
    await box.retire()
    binds = (
        Bind(source=box.place("/app"), target="/app", is_writable=True),
        Bind(source=box.place("/home/user"), target="/home/user"),
    )
    other = await local.boot(beside=box, binds=binds)
    said = await local.run(other, "cat /app/file; echo second > /app/file; echo x > ~/file; ls -A /tmp")
    assert said.output.startswith("first\n")
    assert "Read-only file system" in said.output
    assert (box.place("/app") / "file").read_text() == "second\n"


async def test_a_box_beside_another_ends_with_it(local: "Bench") -> None:
    box = await local.boot()
    other = await local.boot(beside=box)
    await box.stop()
    assert await other.wait_dead() == "stopped"
    with pytest.raises(BoxStartFailed, match="is gone"):
        await local.boot(beside=box)


async def test_files_written_beside_a_box_count_for_its_disk(local: "Bench") -> None:
    box = await local.boot(resources=Resources(disk=20 << 20))
    await box.retire()
    other = await local.boot(beside=box, binds=(Bind(source=box.place("/app"), target="/app", is_writable=True),))
    await other.spawn(_command("head -c 60000000 /dev/zero > /app/fill; sleep 1000"))
    with anyio.fail_after(20):
        assert "out of disk" in await other.wait_dead()
    assert other.is_broken_from_inside


async def test_remaining_processes_are_named_and_counted_beside_our_commands(local: "Bench") -> None:
    box = await local.boot()
    assert await box.remaining() == RemainingProcesses()
    ours = await box.spawn(_command("exec sleep 1000"))
    await local.run(box, "for i in 1 2; do setsid sleep 1000 </dev/null >/dev/null 2>&1 & done; sleep 0.2")
    left = await box.remaining()
    assert (left.names["sleep"], left.is_listening) == (3, False)
    await ours.kill()
    assert (await box.remaining()).names == {"sleep": 2}


@pytest.mark.parametrize(
    ("family", "address"),
    [("socket.AF_INET", "('127.0.0.1', 0)"), ("socket.AF_INET6", "('::1', 0)"), ("socket.AF_UNIX", "'/tmp/s'")],
)
async def test_a_process_that_listens_is_told_from_one_that_does_not(local: "Bench", family: str, address: str) -> None:
    box = await local.boot()
    server = await box.spawn(_command(f'exec python3 -c "{LISTEN.format(family, address)}"'))
    assert await server.stdout.receive() == b"\n"
    assert (await box.remaining()).is_listening


async def test_a_port_that_is_listened_at_for_the_way_out_is_nobodys(local: "Bench") -> None:
    box = await local.boot()
    with await box.listen(61080):
        await local.run(box, "setsid sleep 1000 </dev/null >/dev/null 2>&1 & sleep 0.1")
        assert not (await box.remaining()).is_listening


@pytest.mark.parametrize("deed", ["kill -9 -1", "kill -9 1", "kill -STOP 1", "kill -9 $PPID"])
async def test_processes_in_a_box_cannot_end_or_stop_it(local: "Bench", deed: str) -> None:
    box = await local.boot()
    await local.run(box, f"(setsid sleep 1000 &); {deed}")
    assert (await local.run(box, "echo alive")).output == "alive\n"


async def test_a_box_that_is_killed_from_outside_is_not_broken_from_inside(local: "Bench") -> None:
    box = await local.boot()
    os.kill(max(box.pids()), signal.SIGKILL)
    assert await box.wait_dead() == "killed by signal 9"
    assert not box.is_broken_from_inside


async def test_a_command_that_cannot_be_ended_breaks_its_box_from_inside(local: "Bench") -> None:
    box = await local.boot()
    process = await box.spawn(_command("kill -STOP $PPID; exec sleep 1000"))
    await until(lambda: _is_stopped(box), "the helper is stopped")
    await process.kill()
    assert await box.wait_dead() == "a command in it could not be ended"
    assert box.is_broken_from_inside


@pytest.mark.parametrize("later", [0.0, 0.002, 0.005, 0.01])
async def test_a_box_that_is_started_beside_one_that_stops_is_not_left_behind(local: "Bench", later: float) -> None:
    box = await local.boot()

    async def boot() -> None:
        with suppress(BoxStartFailed):
            await (await local.boot(beside=box)).stop()

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(boot)
        await anyio.sleep(later)
        tasks.start_soon(box.stop)
    assert not local.provider._boxes
    with pytest.raises(BoxStartFailed):
        await local.boot(beside=box)


def _is_stopped(box: AgentBox) -> bool:
    stats = [Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] for pid in box.pids()]
    return b"T" in stats


def _command(script: str) -> Command:
    return Command(argv=("bash", "-c", script))
