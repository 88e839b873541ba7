"""Processes that stand still for longer than a stage may take: a suspended machine, a debugger, a frozen container."""

import os
import signal
import time
from typing import Final

import pytest

from .conftest import Night

#: Seconds that a stage may take, and for which a process is stopped.
LIMIT: Final = 4
STOPPED: Final = 7.0
LIMITS: Final = [
    word for stage in ("boot", "gather", "score", "release") for word in (f"--timeout-{stage}", str(LIMIT))
]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["solve", "score"])
@pytest.mark.parametrize("victim", ["sweep", "service"])
def test_a_process_that_stands_still_for_longer_than_a_stage_may_take_costs_time_only(
    night: Night, victim: str, stage: str
) -> None:
    night.start(*LIMITS)
    night.comes_to(stage)
    assert night.world.sweep is not None
    pid = night.world.sweep.pid if victim == "sweep" else night.world.service_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    time.sleep(STOPPED)
    os.kill(pid, signal.SIGCONT)
    night.ends_well()
