"""SIGKILL to the service ends everything that it started, and the next service cleans up."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.process_provider import ProcessProvider
from orchestrator.service.sandbox.provider import BoxSpec, Capability
from tests.processes import carrying
from tests.waiting import until

pytestmark = pytest.mark.anyio


SERVICE = """
import asyncio, sys
from pathlib import Path
from orchestrator.core.errors import SandboxUnavailable
from orchestrator.service.sandbox.provider import BoxSpec, shell
from {module} import {provider}

async def main():
    provider = {provider}(Path(sys.argv[1]))
    for number in range(3):
        box = await provider.start(BoxSpec(id=f"victim-{{number}}", environment={{"MARKER": sys.argv[2]}}))
        process = await box.spawn(shell("for i in 1 2 3; do setsid sleep 1000 & done; echo up; setsid sleep 1000"))
        await process.stdout.receive()
    print("up", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


BOOTING = """
import asyncio, sys
from pathlib import Path
from orchestrator.service.sandbox.provider import BoxSpec
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider

async def main():
    provider = BwrapProvider(Path(sys.argv[1]))
    await provider.start(BoxSpec(id="first"))
    print("up", flush=True)
    await asyncio.gather(*(provider.start(BoxSpec(id=f"victim-{number}")) for number in range(40)))

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", [BwrapProvider, ProcessProvider])
async def test_a_killed_service_leaves_no_process(
    kind: type[BwrapProvider] | type[ProcessProvider], state: Path, marker: str, obstacle: str
) -> None:
    if Capability.DIES_WITH_SERVICE not in kind.capabilities:
        pytest.skip(f"{kind.name} does not declare {Capability.DIES_WITH_SERVICE}")
    if kind is BwrapProvider and obstacle:
        pytest.skip(obstacle)
    service = start_service(kind, state, marker)
    try:
        assert service.stdout is not None
        with anyio.fail_after(20):
            assert await anyio.to_thread.run_sync(service.stdout.readline) == b"up\n"
        await until(lambda: len(carrying(marker)) >= 3 * 4, "commands and daemons run")
    finally:
        service.send_signal(signal.SIGKILL)
        service.communicate()
    await until(lambda: not carrying(marker), "nothing is left")
    await the_next_one_cleans_up(kind(state))


@pytest.mark.parametrize("booting", [3, 8])
async def test_a_service_killed_while_boxes_boot_leaves_none_half_way(
    booting: int, state: Path, sandboxes: None
) -> None:
    """A sandbox that is still being set up does not yet die with the service by itself."""
    service = start_alone(BOOTING, state)
    assert service.stdout is not None
    with anyio.fail_after(20):
        assert await anyio.to_thread.run_sync(service.stdout.readline) == b"up\n"
    await until(lambda: len(list((state / "boxes").iterdir())) > booting, "boxes boot")
    service.send_signal(signal.SIGKILL)
    service.communicate()
    await until(lambda: not in_session(service.pid), "nothing is left of those that booted")


def start_alone(code: str, state: Path) -> subprocess.Popen[bytes]:
    """Start a service in a session of its own."""
    folder = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, state], stdout=subprocess.PIPE, cwd=folder, start_new_session=True
    )


def in_session(session: int) -> list[int]:
    """The processes of a session: a sandbox leaves the service's only once it is set up."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(status.parent.name))
    return found


def start_service(
    kind: type[BwrapProvider] | type[ProcessProvider], state: Path, marker: str
) -> subprocess.Popen[bytes]:
    code = SERVICE.format(module=kind.__module__, provider=kind.__name__)
    folder = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", code, state, marker], stdout=subprocess.PIPE, cwd=folder)


async def the_next_one_cleans_up(provider: BwrapProvider | ProcessProvider) -> None:
    await provider.start(BoxSpec(id="next"))
    assert [folder.name for folder in (provider.state / "boxes").iterdir()] == ["next"]
    await provider.close()
