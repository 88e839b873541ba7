"""`sweep logs`: prints the files of attempts, read from the run folder while any process works in it."""

import codecs
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import anyio

from orchestrator.commands.attach import LOOK_S
from orchestrator.core.errors import UsageError
from orchestrator.core.ledger import Ledger, Trial
from orchestrator.core.plan import Plan, trials_of
from orchestrator.core.printable import coloured, printable, shortened
from orchestrator.core.records import Outcome, ScenarioSummary, TrialKey
from orchestrator.engine.agent_log import is_cut
from orchestrator.rundir.files import AGENT_LOG, attempt_folder
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.rundir.sweep_index import holder
from orchestrator.view.console import say, wait_writable
from orchestrator.view.report import MESSAGE_WIDTH, number

_PIECE_BYTES: Final = 1 << 20
#: What may be the beginning of a line's end or of a colour.
_UNFINISHED: Final = re.compile(r"(\r|\x1b(\[[0-9;:]{0,60})?)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """The file to print. `arm` is None for the only arm, `attempt` and `step` for the newest."""

    arm: str | None = None
    trial: int = 1
    attempt: int | None = None
    step: str | None = None
    file: str = AGENT_LOG


class Printer:
    """Prints bytes of a file: verbatim if `is_raw`, else with colours, and every other control character escaped."""

    def __init__(self, *, is_raw: bool) -> None:
        self._is_raw = is_raw
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._kept = ""

    def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Write without a buffer, so that a reader sees it at once. Raises OSError."""
        if not self._is_raw:
            text = self._kept + self._decoder.decode(data, is_last)
            unfinished = None if is_last else _UNFINISHED.search(text)
            self._kept = unfinished[0] if unfinished else ""
            data = coloured(text.removesuffix(self._kept)).encode()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(sys.stdout.fileno(), rest) :]
            except BlockingIOError:  # another process that shares the descriptor has made it so
                wait_writable(sys.stdout.fileno())


async def run(folder: Path, scenario: str | None, query: LogQuery, *, is_followed: bool, is_raw: bool) -> None:
    """Print a file, a list of the files in a folder, or without `scenario` a list of all attempts.

    `is_followed` prints the file while it grows; `is_raw` passes control characters to a terminal. Raises UsageError if
    there is no such file, BrokenPipeError without a reader.
    """
    sweep = await anyio.to_thread.run_sync(RecordedSweep, folder)
    plan = sweep.plan
    if scenario is None:
        for line in _list(folder, plan, sweep.ledger):
            say(line)
        return
    keys = trials_of(plan, scenario, arm=query.arm, number=query.trial)
    if len(keys) > 1:
        raise UsageError(f"Say which arm: --arm {' or '.join(plan.arms)}.")
    (key,) = keys
    summary = plan.by_id[key.scenario]
    steps = [step.name for step in summary.steps]
    if query.step is not None and query.step not in steps:
        raise UsageError(f"{summary.name} has no step {query.step!r}: there are {', '.join(steps) or 'none'}.")
    printer = Printer(is_raw=is_raw or not sys.stdout.isatty())
    if is_followed:
        await _follow(sweep, key, summary, query, printer)
        return
    trial = sweep.ledger.trials.get(key)
    path = _find_file(folder, key, summary, query, trial)
    if path.is_dir():
        for each in _files(path):
            say(str(each.relative_to(path)))
    elif not await _copy(path, 0, printer) and path.name == AGENT_LOG:
        say(f"The agent printed nothing.{_failure(trial)}", to_stderr=True)
    printer.write(b"", is_last=True)


async def _follow(
    sweep: RecordedSweep, key: TrialKey, summary: ScenarioSummary, query: LogQuery, printer: Printer
) -> None:
    """Print a file as it grows, attempt after attempt and step after step, until the trial has ended."""
    folder, index, at = sweep.folder, 0, 0
    while True:
        is_at_work = await anyio.to_thread.run_sync(holder, folder) is not None
        await anyio.to_thread.run_sync(sweep.catch_up)
        trial = sweep.ledger.trials.get(key)
        places = _places(folder, key, summary, query, max(1, trial.attempts if trial else 0))
        place = places[index] if places else folder / "nothing"
        path = place / query.file
        if path.is_dir() or not path.resolve().is_relative_to(place.resolve()):
            raise UsageError(f"--file {query.file} is no file that can be followed: leave out -f, or name another.")
        at = await _copy(path, at, printer)
        is_over = not is_at_work or sweep.ledger.is_finished(key)
        if index + 1 < len(places):
            index, at = index + 1, 0
            place = places[index]
            attempt, step = (place.parents[1], f", step {place.name}") if summary.steps else (place, "")
            say(f"--- {attempt.name.replace('-', ' ')}{step}", to_stderr=True)
        elif is_over or (query.attempt is not None and trial is not None and query.attempt < trial.attempts):
            if at == 0:  # say what is wrong, if something is
                _find_file(folder, key, summary, query, trial)
            printer.write(b"", is_last=True)
            return
        else:
            await anyio.sleep(LOOK_S)


async def _copy(path: Path, at: int, printer: Printer) -> int:
    """Print a file from byte `at` on; returns its end. A missing file counts as empty."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < at:  # a process that resumes after another died writes the same again; a cut is for good
            return size if is_cut(path) else at
        file.seek(at)
        while piece := file.read(_PIECE_BYTES):
            # In a thread, so that Ctrl-C works even if the terminal takes nothing.
            await anyio.to_thread.run_sync(printer.write, piece, abandon_on_cancel=True)
            at += len(piece)
    return at


def _find_file(folder: Path, key: TrialKey, summary: ScenarioSummary, query: LogQuery, trial: Trial | None) -> Path:
    """Return the path. Raises UsageError that names the files there are."""
    if trial is None or trial.attempts == 0:
        problem = f"cannot run here: {summary.unsupported}" if summary.unsupported else "has not begun"
        raise UsageError(f"{summary.name} {problem}.")
    number = query.attempt or trial.attempts
    places = _places(folder, key, summary, replace(query, attempt=number), trial.attempts)
    place = places[-1] if places else attempt_folder(folder, key, summary.name, number)
    if not place.is_dir():
        raise UsageError(f"{summary.name} has no attempt {query.attempt}: there are {trial.attempts}.")
    path = place / query.file
    if not path.exists() or not path.resolve().is_relative_to(place.resolve()):
        known = ", ".join(sorted(printable(each.name) for each in place.iterdir())) or "none"
        raise UsageError(f"{summary.name} has no file {query.file}. There are: {known}.{_failure(trial)}")
    return path


def _places(folder: Path, key: TrialKey, summary: ScenarioSummary, query: LogQuery, newest: int) -> list[Path]:
    """Return the folders of the attempts that a query is about, or those of their steps that there are, in order."""
    numbers = range(1, newest + 1) if query.attempt is None else [query.attempt]
    attempts = [attempt_folder(folder, key, summary.name, number) for number in numbers]
    if not summary.steps:
        return attempts
    steps = [attempt / "steps" / step.name for attempt in attempts for step in summary.steps]
    return [step for step in steps if step.is_dir() and query.step in {None, step.name}]


def _failure(trial: Trial | None) -> str:
    """A sentence with the failure of a trial; "" if it did not fail."""
    if trial is None or trial.failure is None:
        return ""
    return f" The trial failed: {trial.failure}: {shortened(trial.message, MESSAGE_WIDTH)}"


def _list(folder: Path, plan: Plan, ledger: Ledger) -> Iterator[str]:
    """Yield a line for each attempt that has begun: its trial, its state, and the files in its folder."""
    scenarios = {each.id: each for each in plan.scenarios}
    for key in plan:
        if (trial := ledger.trials.get(key)) is None:
            continue
        scenario = scenarios[key.scenario]
        for attempt in range(1, trial.attempts + 1):
            state = str((trial.attempt and trial.attempt.stage) or "waiting")
            if trial.attempt and scenario.steps:
                state = f"{scenario.steps[len(trial.attempt.steps)].name}: {state}"
            if attempt < trial.attempts:
                state = "given up"
            elif trial.outcome is not None:
                state = number(trial.score) if trial.outcome is Outcome.SCORED else str(trial.outcome)
            place = attempt_folder(folder, key, scenario.name, attempt)
            depth = 3 if (place / "steps").is_dir() else 1
            files = ", ".join(sorted({"/".join(each.relative_to(place).parts[:depth]) for each in _files(place)}))
            yield f"{scenario.name} {key.arm} {key.number} attempt {attempt} {state}: {files}"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
