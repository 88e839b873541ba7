"""A loop that is stuck is noticed from outside it, in a real process; sleep is not taken for that."""

import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from orchestrator.engine import watchdog

PROGRAM = """
import sys, time
from pathlib import Path
import anyio
from orchestrator.common import logging_setup
from orchestrator.engine import watchdog
from orchestrator.engine.watchdog import Watchdog

def busy_in_vain():
    time.sleep(1.2)

async def main():
    logging_setup.to_file(Path(sys.argv[1]))
    watchdog.LATE_S = 1.5
    dog = Watchdog(lambda seconds: print(f"slept {seconds:.1f}", flush=True), patience=0.8)
    with dog.watching():
        await anyio.sleep(0.3)
        print("up", flush=True)
        for act in sys.argv[2:]:
            if act == "block":
                busy_in_vain()
            await anyio.sleep(0.7)
        print("notice", dog.notice, flush=True)

anyio.run(main)
"""


def start(log: Path, *acts: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PROGRAM, str(log), *acts]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_a_stuck_loop_is_reported_once_with_its_cause_and_again_when_it_moves(tmp_path: Path) -> None:
    process = start(tmp_path / "sweep.log", "block", "block")
    out, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if "loop" in line]
    assert len(lines) == 4, err
    assert lines[0].startswith("sweep: the event loop has been stuck for ")
    assert "(busy_in_vain)" in lines[0]
    assert lines[1].startswith("sweep: the event loop was stuck for ")
    assert "notice the event loop was stuck for" in out
    events = [orjson.loads(line) for line in (tmp_path / "sweep.log").read_bytes().splitlines()]
    assert [event["event"] for event in events] == ["loop.stuck", "loop.moves_again"] * 2
    assert events[0]["stack"][0].endswith("busy_in_vain")
    assert 1.0 < events[1]["seconds"] < 5


def test_a_process_that_was_stopped_slept_and_was_not_stuck(tmp_path: Path) -> None:
    """Like after a suspend: nothing of it ran, so nothing of it is to blame."""
    process = start(tmp_path / "sweep.log", "idle", "idle")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=2.0)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert "stuck" not in err + out
    assert out.startswith("slept ")
    assert "notice the machine slept for" in out


def test_a_loop_that_turns_is_left_alone(tmp_path: Path) -> None:
    process = start(tmp_path / "sweep.log", "idle", "idle")
    out, err = process.communicate(timeout=60)
    assert err == ""
    assert out == "up\nnotice None\n"


def test_the_clock_it_looks_at_goes_on_while_the_machine_sleeps() -> None:
    before = watchdog._since_boot()
    assert watchdog._since_boot() >= before > 0
