"""Processes behind the numbers that an earlier process of ours wrote down."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.agentkit.worker_process import Worker, end_process
from orchestrator.common.locks import birth
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
