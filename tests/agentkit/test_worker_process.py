"""Processes behind the numbers that an earlier process of ours wrote down."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.agentkit.worker_process import Worker, end_process
from orchestrator.common.locks import birth
from orchestrator.core.errors import UsageError, WorldError
from tests.processes import open_files
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a session of its own, with a child."""
    code = "import subprocess, sys; subprocess.Popen(['sleep', '1000']); print('up', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.stdin.close()
    process.stdout.close()
    process.wait()


async def test_an_agent_of_a_dead_process_is_ended_with_what_it_started(sleeper: "subprocess.Popen[bytes]") -> None:
    await end_process(sleeper.pid, birth(sleeper.pid))
    assert sleeper.wait(5) == -9
    with pytest.raises(ProcessLookupError):  # its child's end is noticed by the process that adopted it
        await until(lambda: os.killpg(sleeper.pid, 0), "its child lives", seconds=5)


async def test_a_process_that_only_has_the_number_is_left_alone(sleeper: "subprocess.Popen[bytes]") -> None:
    boot, _, ticks = birth(sleeper.pid).rpartition(" ")
    for other in (f"{boot} {int(ticks) - 1}", f"another-boot {ticks}", ""):
        await end_process(sleeper.pid, other)
    assert sleeper.poll() is None


def test_a_process_that_is_gone_has_no_birth(sleeper: "subprocess.Popen[bytes]") -> None:
    sleeper.kill()
    sleeper.wait()
    assert birth(sleeper.pid) == ""


def own_score() -> str:
    return Path("/proc/self/oom_score_adj").read_text()


async def test_an_agent_and_all_it_starts_go_before_us_when_memory_runs_out(tmp_path: Path) -> None:
    """Its supervisor goes next; we stay what we were."""
    ours, printed = own_score(), bytearray()
    scores = "cat /proc/$PPID/oom_score_adj /proc/$$/oom_score_adj; setsid -w cat /proc/self/oom_score_adj"
    job = {"op": "command", "argv": ["sh", "-c", scores], "cwd": str(tmp_path), "stdin": os.devnull}
    worker = await Worker.start(Path(sys.executable), job, environment={"PATH": os.environ["PATH"]})
    assert (await worker.run(log=printed.extend, time_limit=30)).exit_status == 0
    assert printed.split() == [b"900", b"1000", b"1000"]
    assert own_score() == ours


@contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """Let this process open only so many more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(file.name) for file in Path("/proc/self/fd").iterdir())
    held = [os.open(os.devnull, os.O_RDONLY)]
    while held[-1] < highest:
        held.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1 + descriptors, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in held:
            os.close(each)


async def test_a_machine_without_room_for_a_process_is_not_the_users_mistake() -> None:
    before, refusals = open_files(), list[str]()
    for descriptors in range(10):
        with room_for(descriptors):
            try:
                worker = await Worker.start(Path(sys.executable), {"op": "load"}, environment={})
            except WorldError as error:
                refusals.append(error.message)
                continue
        await worker.end()
    assert 1 < len(refusals) < 10
    assert {refusal.rpartition(": ")[2] for refusal in refusals} == {"Too many open files"}
    assert open_files() == before


async def test_a_python_that_is_none_is_the_users_mistake(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("no program")
    for mode in (0o600, 0o700):
        script.chmod(mode)
        with pytest.raises(UsageError, match="python: this Python cannot be started"):
            await Worker.start(script, {"op": "load"}, environment={})
