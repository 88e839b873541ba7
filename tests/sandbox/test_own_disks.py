"""Devboxes with disks of their own: full at the limit, and nothing of them is left."""

import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from orchestrator.core.errors import SandboxUnavailable
from orchestrator.core.protocol import DiskLimit, Isolation
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.process_provider import ProcessProvider
from orchestrator.service.sandbox.provider import ImageRoot, Resources
from orchestrator.service.sandbox.safe_fs import remove
from tests.sandbox.conftest import AnyProvider, Bench, opened, prepared
from tests.sandbox.test_service_death import start_alone
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.root]

MIB = 1 << 20
LIMIT = Resources(disk=40 * MIB)


@pytest.fixture(scope="module")
async def hard_provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AnyProvider]:
    async for provider in prepared(Isolation.LOCAL, tmp_path_factory.mktemp("hard"), DiskLimit.HARD):
        yield provider


@pytest.fixture(params=["host", "image"])
async def hard(
    request: pytest.FixtureRequest, hard_provider: BwrapProvider, tmp_path: Path, image: ImageRoot
) -> AsyncIterator[Bench]:
    """A bench for each kind of box with a disk of its own."""
    async for bench in opened(hard_provider, tmp_path, image if request.param == "image" else None):
        yield bench
    await until(lambda: not devices_of(hard_provider.state), "a loop device is left")


def devices_of(state: Path) -> list[str]:
    """Loop devices whose files were in a state folder, which may have been removed."""
    found: list[str] = []
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            found += [line for line in device.read_text().splitlines() if line.startswith(str(state))]
    return found


async def test_the_disk_is_full_at_its_limit_and_the_box_lives(hard: Bench) -> None:
    box = await hard.boot(resources=LIMIT)
    script = "for n in 1 2 3 4 5 6; do head -c 10000000 /dev/zero >f$n || break; done; cat f* | wc -c"
    done = await hard.run(box, script)
    assert b"No space left on device" in done.stderr
    assert 36 * MIB < int(done.stdout) <= 44 * MIB
    assert (await hard.run(box, "rm f*; head -c 10000000 /dev/zero >f && echo free")).output == "free\n"
    assert (await hard.run(box, "df -P . | tail -n 1")).output.split()[1] < "60000"


async def test_so_many_empty_files_as_blocks_can_be_made(hard: Bench) -> None:
    box = await hard.boot(resources=LIMIT)
    script = "import os\nfor n in range(200_000):\n os.close(os.open(f'e{n}', os.O_CREAT))"
    done = await hard.run(box, f'python3 -c "{script}"', timeout=60)
    assert "No space left on device" in done.output
    assert (await hard.run(box, "ls | wc -l")).output > "10000"


async def test_beside_a_full_disk_what_judges_it_can_write(hard: Bench) -> None:
    box = await hard.boot(resources=LIMIT)
    script = "import os\ntry:\n for n in range(200_000): os.close(os.open(f'e{n}', os.O_CREAT))\nexcept OSError: pass"
    await hard.run(box, f'head -c 100000000 /dev/zero >big; python3 -c "{script}"', timeout=60)
    assert (await hard.run(box, "touch more")).status != 0
    await box.retire()
    if hard.image is None:
        return
    judge = await hard.boot(beside=box)
    assert (
        await hard.run(judge, "mkdir d; head -c 10000000 /dev/zero >d/result && echo written")
    ).output == "written\n"


async def test_what_is_on_it_is_copied_or_moved_for_another_box(hard: Bench) -> None:
    await hard.pass_on_files(resources=LIMIT)
    remove(hard.place / "kept")


async def test_export_and_files_for_the_host_are_as_without(hard: Bench) -> None:
    box = await hard.boot(resources=LIMIT)
    await hard.run(box, "echo here >file")
    assert box.place("/home/user/file").read_text() == "here\n"
    (hard.place / "out").mkdir()
    await box.export(hard.place / "out")
    assert (hard.place / "out/home/user/file").read_text() == "here\n"


async def test_its_file_has_no_name_while_it_is_used(hard: Bench) -> None:
    before = set((hard.provider.state / "disks").iterdir())
    await hard.boot(resources=LIMIT)
    assert {place.name for place in {*(hard.provider.state / "disks").iterdir()} - before} <= {f"size-{40 * MIB}"}
    assert len(devices_of(hard.provider.state)) == 1
    table = await anyio.Path("/proc/self/mountinfo").read_text()
    assert str(hard.provider.state) not in table
    assert "/dev/loop" not in table


SERVICE = """
import asyncio, sys
from pathlib import Path
from orchestrator.core.protocol import DiskLimit, Isolation
from orchestrator.service.sandbox.provider import BoxSpec, ImageRoot
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider

async def main():
    state = Path(sys.argv[1])
    (state.parent / "empty").mkdir(exist_ok=True)
    provider = BwrapProvider(state)
    provider.disk_limit = DiskLimit.HARD
    await provider.start(BoxSpec(id="first", image=ImageRoot(layers=(state.parent / "empty",))))
    await provider.start(BoxSpec(id="second"))
    print("up", flush=True)
    await asyncio.gather(*(provider.start(BoxSpec(id=f"victim-{n}")) for n in range(12)))

asyncio.run(main())
"""


async def test_a_killed_service_leaves_no_disk(hard_provider: BwrapProvider, state: Path) -> None:
    service = start_alone(SERVICE, state)
    assert service.stdout is not None
    with anyio.fail_after(60):
        assert await anyio.to_thread.run_sync(service.stdout.readline) == b"up\n"
    await until(lambda: len(devices_of(state)) >= 3, "further ones boot")
    service.send_signal(signal.SIGKILL)
    service.communicate()
    await until(lambda: not devices_of(state), "a loop device is left")
    following = BwrapProvider(state)
    await following.prepare()
    assert not list((state / "boxes").iterdir())
    assert not (state / "disks").exists()
    await following.close()


async def test_without_walls_there_is_no_disk(tmp_path: Path) -> None:
    provider = ProcessProvider(tmp_path / "state")
    provider.disk_limit = DiskLimit.HARD
    with pytest.raises(SandboxUnavailable, match="--disk-limit hard is for sandboxes"):
        await provider.prepare()
