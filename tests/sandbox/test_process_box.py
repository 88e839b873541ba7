"""Boxes without isolation: what they do not claim, where their folders are, and agents that misbehave."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from orchestrator.service.sandbox.agent_connection import spawn_frame
from orchestrator.service.sandbox.base_provider import AGENT, AgentBox
from orchestrator.service.sandbox.limits import Cgroups
from orchestrator.service.sandbox.process_provider import INTERPRETER, ProcessBox, ProcessProvider
from orchestrator.service.sandbox.processes import ChildProcess
from orchestrator.service.sandbox.provider import (
    BoxDied,
    BoxSpec,
    BoxStartFailed,
    Capability,
    Command,
    Limit,
    Resources,
)
from tests.processes import carrying, open_files
from tests.waiting import until

if TYPE_CHECKING:
    from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.anyio


PREAMBLE = "import socket, sys, time; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(b'ready\\n'); s.recv(9); "


class HostileBox(ProcessBox):
    """A box whose agent is the script that its spec's environment holds."""

    async def launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        command = [str(INTERPRETER), "-c", self.spec.environment["AGENT"], str(control)]
        return subprocess.Popen(command, stderr=errors, pass_fds=(control,), start_new_session=True)  # noqa: ASYNC220


class HostileProvider(ProcessProvider):
    """A provider of such boxes."""

    def make(self, spec: BoxSpec, shared: Cgroups, forget: Callable[[], object], beside: AgentBox | None) -> ProcessBox:
        return HostileBox(spec, self.state, shared, self.watch, forget)


def test_a_process_box_claims_no_isolation() -> None:
    capabilities = ProcessProvider.capabilities
    assert not capabilities & {Capability.ISOLATED, Capability.ROOTED, Capability.NETWORK_OFF}


async def test_paths_of_the_box_lie_in_its_folder(process: "Bench") -> None:
    box = await process.boot(working_directory="/srv/code")
    assert box.path("/app/x") == str(box.folder.files / "app/x")
    assert box.path("/srv/code") == str(box.folder.files / "srv/code")
    assert box.path("/usr/bin/env") == "/usr/bin/env"
    assert box.path(box.path("/tmp/x")) == box.path("/tmp/x")
    assert (await process.run(box, "pwd; cd; pwd")).output.split() == [box.path("/srv/code"), box.path("/home/user")]


async def test_temporary_files_stay_in_the_box(process: "Bench") -> None:
    box = await process.boot()
    assert (await process.run(box, "mktemp")).output.startswith(box.path("/tmp/"))


async def test_a_process_limit_is_claimed_where_a_control_group_holds_it(process: "Bench") -> None:
    box = await process.boot(resources=Resources(processes=30))
    assert (Limit.PROCESSES in box.enforced) == (Limit.PROCESSES in box.cgroup.enforced)
    if Limit.PROCESSES in box.enforced:
        fork = "n=0; while [ $n -lt 100 ]; do sleep 100 & n=$((n + 1)); done; wait"
        started = await process.start(box, fork)
        events = box.cgroup.folders[Limit.PROCESSES] / "pids.events"
        await until(lambda: events.read_text().split() != ["max", "0"], "no process is refused")
        assert len(list(box.pids())) < 80
        await started.kill()


async def test_a_command_whose_supervisor_is_shot_is_ended(process: "Bench", marker: str) -> None:
    box = await process.boot()
    command = await box.spawn(
        Command(argv=("sh", "-c", "setsid sleep 1000 & echo up; sleep 1000"), environment={"M": marker})
    )
    await command.stdout.receive()
    assert box._child is not None
    box._child.kill()
    with pytest.raises(BoxDied):
        await command.wait()
    await until(lambda: not carrying(marker), "nothing is left")


HOSTILE = {
    "garbage": "s.sendall(b'\\x00\\xffgarbage\\n'); time.sleep(1000)",
    "an unknown command's end": "s.sendall(b'exit 99 0\\n'); time.sleep(1000)",
    "an end that comes twice": "s.sendall(b'exit 1 0\\nexit 1 0\\n'); time.sleep(1000)",
    "an impossible status": "s.sendall(b'exit 1 999\\n'); time.sleep(1000)",
    "a second start": "s.sendall(b'ready\\n'); time.sleep(1000)",
    "a line without end": "s.sendall(b'x' * 10_000_000); time.sleep(1000)",
    "a flood": "\nwhile True: s.sendall(b'exit 1 0\\n' * 10000)",
    "file descriptors": "socket.send_fds(s, [b'ready\\n'], [0, 1, 2]); time.sleep(1000)",
    "nothing more": "s.close()",
}


@pytest.mark.parametrize("deed", HOSTILE)
async def test_an_agent_that_sends_what_ours_never_sends_ends_its_box_and_nothing_else(state: Path, deed: str) -> None:
    provider = HostileProvider(state)
    try:
        box: AgentBox = await provider.start(BoxSpec(id="hostile", environment={"AGENT": PREAMBLE + HOSTILE[deed]}))
        before = open_files()
        command = await box.spawn(Command(argv=("true",)))
        with anyio.fail_after(3):
            why = await ended(box, command.wait)
        assert why
        await box.stop()
        assert open_files() <= before
    finally:
        await provider.close()


async def ended(box: AgentBox, wait: Callable[[], Awaitable[int]]) -> str:
    try:
        await wait()
    except BoxDied as error:
        return str(error)
    connection = box._connection
    assert connection is not None
    return await until(lambda: connection.reason, "it has no reason")


async def test_an_agent_that_cannot_start_says_why(state: Path) -> None:
    provider = HostileProvider(state)
    with pytest.raises(BoxStartFailed, match="no luck today"):
        await provider.start(BoxSpec(id="hostile", environment={"AGENT": "raise SystemExit('no luck today')"}))
    await provider.close()


@pytest.mark.parametrize("when", ["in the middle of an order", "before an answer"])
async def test_a_host_that_goes_at_a_bad_moment_leaves_no_daemon(when: str, marker: str) -> None:
    """No namespace ends the daemons with the agent here, and no helper of theirs is left."""

    def order(number: int, script: str) -> bytes:
        return spawn_frame(number, "/tmp", "", ["sh", "-c", script], {"PATH": os.environ["PATH"], "M": marker})

    host, agent = socket.socketpair()
    with (
        agent,
        host,
        subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-I", "-S", AGENT, str(agent.fileno()), ""], pass_fds=(agent.fileno(),), env={}
        ) as popen,
    ):
        agent.close()
        null = os.open("/dev/null", os.O_RDWR)
        answers = host.makefile("rb")
        assert answers.readline() == b"ready\n"
        socket.send_fds(host, [order(1, "setsid sleep 1000 &")], [null, null])
        assert answers.readline() == b"exit 1 0\n"
        await until(lambda: len(carrying(marker)) == 1, "the daemon runs")
        if when == "before an answer":
            host.shutdown(socket.SHUT_RD)
            socket.send_fds(host, [order(2, "true")], [null, null])
        else:
            socket.send_fds(host, [order(2, "true")[:20]], [null, null])
            host.shutdown(socket.SHUT_RDWR)
        os.close(null)
        await anyio.to_thread.run_sync(popen.wait)
    assert not carrying(marker)


async def test_no_box_that_waits_for_its_turn_is_started_when_the_provider_closes(state: Path) -> None:
    provider = ProcessProvider(state)
    refused: list[str] = []

    async def start(number: int) -> None:
        try:
            await provider.start(BoxSpec(id=f"box-{number}"))
        except BoxStartFailed as error:
            refused.append(str(error))

    await provider.prepare()
    async with anyio.create_task_group() as starts:
        for number in range(40):
            starts.start_soon(start, number)
        while not provider._boxes:
            await anyio.lowlevel.checkpoint()
        await provider.close()
    assert len(refused) > 20
    assert not provider._boxes
    assert await anyio.Path(state / "boxes").is_dir()
    assert not [place async for place in anyio.Path(state / "boxes").iterdir()]


async def test_without_a_free_descriptor_a_childs_end_is_noticed_too() -> None:
    ended = anyio.Event()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as popen:  # noqa: ASYNC220
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
        try:
            child = ChildProcess(popen, lambda _: ended.set())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        child.kill()
        with anyio.fail_after(10):
            await ended.wait()
