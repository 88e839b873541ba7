"""Times what shows a sweep of ten thousand trials: commands with and without a checkpoint, live picture, and page."""

import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any

import anyio
from playwright.sync_api import sync_playwright

from orchestrator.commands.attach import JournalStatus
from orchestrator.core import events
from orchestrator.core.events import Event, to_line
from orchestrator.core.ledger import Ledger
from orchestrator.core.records import Flag, ScenarioSummary, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.rundir.checkpoint import CHECKPOINT
from orchestrator.rundir.files import JOURNAL
from orchestrator.rundir.journal import Journal, JournalSettings
from orchestrator.rundir.manifest import Manifest, write_manifest
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.view.console import write_by_threads
from orchestrator.view.formats import SCREEN
from orchestrator.view.progress import Progress
from scripts import demo_sweep

SCENARIOS, ARMS, TRIALS = 1000, ("first", "second"), 5
BEGAN = 1_800_000_000.0
RUNS = 5
#: The live picture: trials in flight, trials that finish in a second, seconds of watching.
FLYING, RATE, WATCHED_S = 2000, 10, 20.0


def make(folder: Path) -> None:
    """A finished sweep: journal, manifest, and what is derived of the journal. Every seventh trial failed."""
    scenarios = {
        f"scn_{number:020x}": ScenarioSummary(id=f"scn_{number:020x}", name=f"scenario-{number:05}", digest="0" * 64)
        for number in range(SCENARIOS)
    }
    arms = [{"name": arm, "agent": "oracle", "model": None, "settings": {}} for arm in ARMS]
    manifest = Manifest(
        schema=1,
        sweep="01a20996-b92d-7f9b-9c72-808d95ad429a",
        name=folder.name,
        created="2027-01-15T08:00:00+00:00",
        identity={"benchmark": "many", "arms": {}},
        trials=SCENARIOS * len(ARMS) * TRIALS,
        config={"arms": arms, "trials": TRIALS, "devboxes": 200},
        scenarios=scenarios,
    )
    folder.mkdir()
    write_manifest(folder, manifest)
    with (folder / JOURNAL).open("wb") as file:
        opened = events.SweepOpened(at=BEGAN, sweep=manifest.sweep, schema=events.SCHEMA, version="", pid=1)
        file.write(to_line(opened))
        keys = product(range(1, TRIALS + 1), scenarios.values(), ARMS)
        for number, (trial, scenario, arm) in enumerate(keys):
            file.writelines(map(to_line, history(number, scenario, arm, trial)))
        file.write(to_line(events.SweepEnded(at=BEGAN + 40_000, reason="finished")))
    anyio.run(derive, folder)


async def derive(folder: Path) -> None:
    """Results and checkpoint are made as a sweep makes them."""
    async with Journal.open(folder, Ledger(), JournalSettings(checkpoint=1)):
        pass


def history(number: int, scenario: ScenarioSummary, arm: str, trial: int) -> Iterator[Event]:
    """What a sweep writes of a trial; its result is a line of about 2 kB."""
    of: Any = {"trial": f"{scenario.id}/{arm}/{trial}", "attempt": 1, "at": BEGAN + number * 4}
    for stage in Stage:
        if stage is Stage.RELEASE:
            yield events.TrialFinished(**of, result=result(number, scenario, arm, trial))
        yield events.StageEntered(**of, stage=stage)
        if stage is Stage.START:
            yield events.RunStarted(**of, run=f"scr_{number:020x}", devbox=f"dbx_{number:020x}")
        if stage is Stage.SOLVE:
            yield events.ExecutionStarted(**of, execution=f"exec_{number:020x}")
            for kept in range(10):
                yield events.OutputKept(**of, offset=kept * 4000, length=kept * 4000)
        usage = {"input_tokens": 123_456, "output_tokens": 2345, "cost_usd": 0.1234} if stage is Stage.SOLVE else {}
        yield events.StageFinished(**of, stage=stage, seconds=12.345, facts={"exit_status": 0, "usage": usage})


def result(number: int, scenario: ScenarioSummary, arm: str, trial: int) -> dict[str, object]:
    place = f"trials/{scenario.name}-0a1b2c3d/{arm}-0a1b2c3d/{trial}/attempt-1"
    failure = {"class": "DevboxLost", "message": f"devbox dbx_{number:020x} died", "stage": "solve"}
    has_failed = number % 7 == 6
    return {
        "schema": 1,
        "sweep": "01a20996-b92d-7f9b-9c72-808d95ad429a",
        "benchmark": "many",
        "scenario": scenario.id,
        "scenario_name": scenario.name,
        "arm": arm,
        "agent": "oracle",
        "version": "1.0",
        "model": None,
        "trial": trial,
        "started": "2027-01-15T08:00:00.000+00:00",
        "finished": "2027-01-15T08:01:00.000+00:00",
        "outcome": "failed" if has_failed else "scored",
        "score": None if has_failed else float(number % 3 > 0),
        "scorers": [{"name": f"tests-{each}", "score": 1.0, "state": "complete"} for each in range(4)],
        "rewards": {"reward": 1.0},
        "scoring": "shared",
        "processes_left": {},
        "flags": [Flag.AGENT_TIMED_OUT] if number % 5 == 0 else [],
        "failure": failure if has_failed else None,
        "attempts": [{"attempt": 1, "failure": failure if has_failed else None}],
        "stages": {stage.value: {"seconds": 12.345 + number % 99, "waited": 0.0} for stage in Stage},
        "exit_status": 0,
        "exit_reason": None,
        "usage": {"input_tokens": 123_456, "output_tokens": 2345, "cost_usd": 0.1234 + number % 13 / 100},
        "network": {"reached": {"api.example.org": 12}, "refused": {}},
        "ids": {"benchmark_run": "bmr_1", "scenario_run": f"scr_{number:020x}", "devbox": f"dbx_{number:020x}"},
        "files": {name: f"{place}/{name}" for name in ("agent.log", "patch.diff", "devbox.log", "scorer-tests.log")},
        "steps": [],
        "rescored": None,
    }


def timed(words: tuple[str, ...], cwd: Path) -> None:
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "orchestrator", *words], cwd=cwd, check=True, stdout=subprocess.DEVNULL, timeout=600
        )
        seconds.append(time.perf_counter() - began)
    print(f"sweep {' '.join(words)}: {median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})", flush=True)


async def watch(folder: Path) -> None:
    """What the picture costs beside the events: printed to standard error, for standard output is the terminal."""
    sweep = RecordedSweep(folder)
    ledger, plan, keys = Ledger(), sweep.plan, iter(sweep.plan)
    for key in islice(keys, 4000):
        ledger.apply(finished(key))
    flying = list(islice(keys, FLYING))
    for key in flying:
        for stage in (Stage.START, Stage.BOOT, Stage.PREPARE, Stage.SOLVE):
            ledger.apply(events.StageEntered(trial=str(key), attempt=1, stage=stage, at=time.time()))
        log = sweep.attempt_folder(key, 1) / "agent.log"
        log.parent.mkdir(parents=True)
        log.write_text("thinking\n" * 1000)
    write_by_threads(SCREEN)
    state = JournalStatus(ledger=ledger, config=sweep.manifest.config, is_over=False)
    progress = Progress(ledger=ledger, plan=plan, state=state, folder=folder, output=SCREEN, opening="Measuring")

    async def happen(number: int) -> float:
        """Finish trials for a while; return the seconds of CPU that this process spends meanwhile."""
        before = time.process_time()
        for key in flying[number : number + int(RATE * WATCHED_S)]:
            await anyio.sleep(1 / RATE)
            ledger.apply(finished(key))
        return time.process_time() - before

    alone = await happen(0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(progress.show)
        seen = await happen(int(RATE * WATCHED_S))
        tasks.cancel_scope.cancel()
    share = (seen - alone) / WATCHED_S
    print(f"the picture, {FLYING} in flight, {RATE} finish a second: {share:.2%} of a core", file=sys.__stderr__)


def finished(key: TrialKey) -> Event:
    stages = {"solve": {"seconds": 60.0, "waited": 0.0}}
    score = float(sum(str(key).encode()) % 2)
    result = {"outcome": "scored", "score": score, "flags": [], "stages": stages, "usage": {"cost_usd": 0.1}}
    return events.TrialFinished(trial=str(key), attempt=1, at=time.time(), result=result)


def picture(folder: Path) -> None:
    """Watch at a terminal of 120 x 40 that takes all it gets."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))

    def drain() -> None:
        with suppress(OSError):
            while os.read(ours, 1 << 16):
                pass

    threading.Thread(target=drain, daemon=True).start()
    command = [sys.executable, "-m", "scripts.bench_view", "watch", str(folder)]
    subprocess.run(command, check=True, stdout=theirs, env={**os.environ, "TERM": "xterm"}, timeout=600)


def interactive(cwd: Path, name: str) -> None:
    """Time the page of a sweep until it obeys a key, each time from a server that has read nothing yet."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("no page: Chromium is not installed", flush=True)
        return
    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(RUNS):
            viewing = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "view", "--port", "0"],
                cwd=cwd,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert viewing.stdout is not None
            link, _, token = viewing.stdout.readline().strip().partition("?")
            page = browser.new_page()
            began = time.perf_counter()
            page.goto(f"{link}sweep/{name}/?{token}")
            page.keyboard.press("j")
            page.locator(".row.chosen").wait_for()
            seconds.append(time.perf_counter() - began)
            page.close()
            viewing.terminate()
            viewing.wait(30)
        browser.close()
    print(f"the page in Chromium: {median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sweep-bench-") as place:
        folder = Path(place)
        (folder / "runs").mkdir()
        night = folder / "runs" / "night"
        make(night)
        sizes = ", ".join(f"{path.name} {path.stat().st_size >> 20} MB" for path in sorted(night.glob("*.jsonl")))
        print(f"{SCENARIOS * len(ARMS) * TRIALS} trials: {sizes}", flush=True)
        for words in (("list",), ("show", "night"), ("failures", "night"), ("status", "night"), ("compare", "night")):
            timed(words, folder)
        interactive(folder, "night")
        demo_sweep.write(folder / "runs" / "short", scenarios=125)
        print("500 trials:", flush=True)
        timed(("report", "short"), folder)
        (night / CHECKPOINT).unlink()
        print("without a checkpoint:", flush=True)
        timed(("show", "night"), folder)
        picture(night)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["watch", folder]:
            anyio.run(watch, Path(folder))
        case _:
            main()
