"""Times opening the journal of a finished sweep, each time in a process of its own; and what appending costs in CPU."""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import anyio

from orchestrator.commands import run_sweep
from orchestrator.core import events
from orchestrator.core.events import Event, to_line
from orchestrator.core.ledger import Ledger
from orchestrator.core.stages import Stage
from orchestrator.rundir.checkpoint import CHECKPOINT
from orchestrator.rundir.files import JOURNAL
from orchestrator.rundir.journal import Journal

RATE, SECONDS, ATTEMPTS = 1000, 10, 100


def trial(number: int) -> Iterator[Event]:
    """What a sweep writes of a trial that goes well; its result is a line of about 1.5 kB."""
    scenario, run, devbox = (f"{kind}_{number:020x}" for kind in ("scn", "scr", "dbx"))
    of: Any = {"trial": f"{scenario}/oracle/1", "attempt": 1, "at": round(time.time(), 3)}
    for stage in Stage:
        if stage is Stage.RELEASE:
            yield events.TrialFinished(**of, result=result(number, scenario, run, devbox))
        yield events.StageEntered(**of, stage=stage)
        if stage is Stage.START:
            yield events.RunStarted(**of, run=run, devbox=devbox)
        if stage is Stage.SOLVE:
            yield events.ExecutionStarted(**of, execution=f"exec_{number:020x}")
        yield events.StageFinished(**of, stage=stage, seconds=12.345, facts={"exit_status": 0, "usage": {}})


def result(number: int, scenario: str, run: str, devbox: str) -> dict[str, object]:
    place = f"trials/scenario-{number}-0a1b2c3d/oracle-0a1b2c3d/1/attempt-1"
    return {
        "schema": 1,
        "sweep": "01a20996-b92d-7f9b-9c72-808d95ad429a",
        "benchmark": "many",
        "scenario": scenario,
        "scenario_name": f"scenario-{number}",
        "arm": "oracle",
        "agent": "oracle",
        "model": None,
        "trial": 1,
        "outcome": "scored",
        "score": 1.0,
        "scorers": [{"name": f"tests-{each}", "score": 1.0, "state": "complete"} for each in range(4)],
        "flags": [],
        "failure": None,
        "attempts": [{"attempt": 1, "failure": None}],
        "stages": {stage.value: {"seconds": 12.345, "waited": 0.0} for stage in Stage},
        "usage": {"input_tokens": 12345, "output_tokens": 2345, "cost": 0.1234},
        "ids": {"benchmark_run": "bmr_a90f4d47c3125b126189", "scenario_run": run, "devbox": devbox},
        "files": {name: f"{place}/{name}" for name in ("agent.log", "patch.diff", "devbox.log", "scorer-tests.log")},
    }


def make(folder: Path, trials: int) -> None:
    with (folder / JOURNAL).open("wb") as file:
        for number in range(trials):
            file.writelines(map(to_line, trial(number)))


async def open_once(folder: Path) -> None:
    assert run_sweep  # all that the process of a sweep has in memory
    began = time.perf_counter()
    async with Journal.open(folder, Ledger()):
        seconds = time.perf_counter() - began
        print(f"{seconds:.2f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB", flush=True)


async def append(folder: Path) -> None:
    """A thousand events a second, ten each of a hundred attempts that wait for theirs; and the same without them."""
    async with Journal.open(folder, Ledger()) as journal:
        idle = await spent(nothing)
        busy = await spent(journal.append)
        print(f"{busy - idle:.3f} ms CPU for each, beside {idle:.3f} ms of the attempts themselves", flush=True)


async def nothing(event: Event) -> None:
    """What is beside the journal."""


async def spent(act: Callable[[Event], Awaitable[None]]) -> float:
    """Milliseconds of this process's CPU for each event."""

    async def attempt(number: int) -> None:
        history = chain.from_iterable(map(trial, range(number * SECONDS, (number + 1) * SECONDS)))
        began = time.perf_counter() + number / RATE
        for count, event in enumerate(islice(history, RATE * SECONDS // ATTEMPTS)):
            await anyio.sleep(max(0.0, began + count * ATTEMPTS / RATE - time.perf_counter()))
            await act(event)

    before = time.process_time()
    async with anyio.create_task_group() as tasks:
        for number in range(ATTEMPTS):
            tasks.start_soon(attempt, number)
    return (time.process_time() - before) / (RATE * SECONDS) * 1e3


def measure(what: str, folder: Path) -> str:
    command = [sys.executable, __file__, what, str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout.strip()


def main(trials: int) -> None:
    with tempfile.TemporaryDirectory(prefix="sweep-bench-") as place:
        folder = Path(place)
        make(folder, trials)
        size = (folder / JOURNAL).stat().st_size >> 20
        print(f"{trials} finished trials, a journal of {size} MB", flush=True)
        measure("open", folder)  # makes results.jsonl
        (folder / CHECKPOINT).unlink(missing_ok=True)
        print("opened without a checkpoint:", measure("open", folder), flush=True)
        print("opened with one:", measure("open", folder), flush=True)
    with tempfile.TemporaryDirectory(prefix="sweep-bench-") as place:
        print(f"appended, {RATE} events a second:", measure("append", Path(place)), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["open", folder]:
            anyio.run(open_once, Path(folder))
        case ["append", folder]:
            anyio.run(append, Path(folder))
        case [trials]:
            main(int(trials))
