"""Signals to a real process: each takes its step, and there is always an end."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

import pytest

from orchestrator.engine import shutdown

PROGRAM: Final = """
import signal, sys, threading, time
import anyio
from orchestrator.engine import shutdown
from orchestrator.engine.shutdown import Stopping, obeying_signals

shutdown.EXIT_GRACE_S = float(sys.argv[3])

async def main():
    stopping = Stopping()
    drain = None if sys.argv[2] == "-" else float(sys.argv[2])
    with obeying_signals(stopping, drain=drain, leave=lambda: print("left", flush=True)):
        with anyio.CancelScope() as scope:
            stopping.bind(scope)
            print("ready", flush=True)
            if sys.argv[1] == "asleep":
                thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
                thread.start()
                signal.pthread_kill(thread.ident, signal.SIGTERM)
                with stopping.until_draining():
                    await anyio.sleep(60)
            while not stopping.is_draining:
                await anyio.sleep(0.01)
            left = stopping.ends_at - anyio.current_time()
            print(f"draining {stopping.reason} {left:.0f}", flush=True)
            if sys.argv[1] == "stuck":
                time.sleep(60)
            with anyio.CancelScope(shield=sys.argv[1] == "stubborn"):
                await anyio.sleep(60)
        print("canceled", flush=True)
    sys.exit(3)

anyio.run(main)
"""


class Process:
    def __init__(
        self,
        manner: str,
        drain: str = "-",
        before: Callable[[], object] | None = None,
        last: float = shutdown.EXIT_GRACE_S,
    ) -> None:
        command = [sys.executable, "-c", PROGRAM, manner, drain, str(last)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=before,  # noqa: PLW1509 - no threads here
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, within: float) -> int:
        try:
            return self.process.wait(within)
        finally:
            self.process.kill()
            self.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_drains_the_second_cancels(number: signal.Signals) -> None:
    process = Process("polite")
    process.send(number)
    assert process.line() == f"draining {number.name} 300"
    process.send(number)
    assert process.line() == "canceled"
    assert process.end(5) == 3


def test_draining_ends_by_itself_after_the_time_that_was_asked_for() -> None:
    process = Process("polite", drain="0.5")
    process.send(signal.SIGTERM)
    assert process.line() == "draining SIGTERM 0"
    assert process.line() == "canceled"
    assert process.end(5) == 3


def test_a_wrapper_that_signals_its_child_and_then_its_group_counts_once() -> None:
    process = Process("polite")
    process.send(signal.SIGTERM)
    process.send(signal.SIGTERM)
    process.send(signal.SIGINT)
    assert process.line().startswith("draining ")
    with pytest.raises(subprocess.TimeoutExpired):
        process.process.wait(0.5)
    process.send(signal.SIGTERM)
    assert process.line() == "canceled"
    assert process.end(5) == 3


def test_a_signal_wakes_a_loop_that_waits_for_its_next_event() -> None:
    """It arrives in another thread here, and so does not interrupt the wait itself."""
    process = Process("asleep")
    try:
        assert process.process.stdout is not None
        assert select.select([process.process.stdout], [], [], 10)[0], "the signal was not seen"
        assert process.line() == "draining SIGTERM 300"
    finally:
        process.process.kill()
        process.process.communicate()


@pytest.mark.parametrize("manner", ["stubborn", "stuck"])
def test_the_third_leaves_at_once_though_nothing_else_works(manner: str) -> None:
    process = Process(manner)
    process.send(signal.SIGINT)
    assert process.line().startswith("draining")
    for _ in range(2):
        time.sleep(3 * shutdown.SAME_SIGNAL_S)  # what comes at once counts as one
        process.send(signal.SIGINT)
    assert process.line() == "left"
    assert process.end(2) == 130


def test_after_the_second_there_is_an_end_within_ten_seconds_whatever_hangs() -> None:
    """A cleanup that is never done, and a loop that never turns again. The ten seconds are fewer here."""
    assert shutdown.EXIT_GRACE_S < 10
    processes = [Process("stubborn", last=2.0), Process("stuck", last=2.0)]
    for process in processes:
        process.send(signal.SIGTERM)
        assert process.line().startswith("draining")
        process.send(signal.SIGTERM)
    began = time.monotonic()
    assert [process.end(5) for process in processes] == [130, 130]
    assert 1.5 < time.monotonic() - began < 3


def test_one_signal_that_asks_for_an_end_now_counts_as_two() -> None:
    process = Process("polite")
    process.send(shutdown.NOW)
    line = process.line()
    if line == "draining sweep stop --now -inf":  # the program happened to look just then: it is canceled at once
        line = process.line()
    assert line == "canceled"
    assert process.end(5) == 3


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    process = Process("polite", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.process.wait(0.5)
    process.send(signal.SIGTERM)
    assert process.line().startswith("draining SIGTERM")
    process.send(signal.SIGTERM)
    assert process.end(5) == 3


def test_a_ctrl_c_at_a_terminal_has_no_bound() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, "polite", "-", "9.5"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "draining SIGINT inf\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 3
    os.close(ours)
