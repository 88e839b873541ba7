"""`sweep logs`: prints the files of attempts, read from the run folder while any process works in it."""

import codecs
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final

import anyio

from orchestrator.commands.attach import LOOK_S, catch_up
from orchestrator.core.errors import UsageError
from orchestrator.core.ledger import Ledger, Trial
from orchestrator.core.plan import Plan
from orchestrator.core.printable import coloured, shortened
from orchestrator.core.records import Outcome, ScenarioSummary, TrialKey
from orchestrator.engine.agent_log import is_cut
from orchestrator.engine.context import LOG, attempt_folder
from orchestrator.rundir.journal import Reader
from orchestrator.rundir.manifest import read_manifest
from orchestrator.rundir.sweep_index import holder
from orchestrator.view.console import say, wait_writable
from orchestrator.view.report import MESSAGE_WIDTH, number

_PIECE_BYTES: Final = 1 << 20
#: What may be the beginning of a line's end or of a colour.
_UNFINISHED: Final = re.compile(r"(\r|\x1b(\[[0-9;:]{0,60})?)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """The file to print. `arm` is None for the only arm, `attempt` for the newest."""

    arm: str | None = None
    trial: int = 1
    attempt: int | None = None
    file: str = LOG


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
    plan, reader = read_manifest(folder).plan, await anyio.to_thread.run_sync(Reader, folder)
    await catch_up(reader)
    if scenario is None:
        for line in _list(folder, plan, reader.ledger):
            say(line)
        return
    summary = next((each for each in plan.scenarios if scenario in {each.id, each.name}), None)
    if summary is None:
        names = [each.name for each in plan.scenarios]
        near = get_close_matches(scenario, names, 3)
        hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(names[:10])}."
        raise UsageError(f"There is no scenario {scenario!r} in it. {hint}")
    arm = plan.arms[0] if query.arm is None and len(plan.arms) == 1 else query.arm
    if arm is None or arm not in plan.arms:
        problem = "Say which arm" if arm is None else f"There is no arm {arm!r}"
        raise UsageError(f"{problem}: --arm {' or '.join(plan.arms)}.")
    key = TrialKey(summary.id, arm, query.trial)
    if key not in plan:
        raise UsageError(f"{folder.name} has no trial {key.number} of {summary.name}: there are {plan.trials}.")
    printer = Printer(is_raw=is_raw or not sys.stdout.isatty())
    if is_followed:
        await _follow(folder, key, summary, query, reader, printer)
        return
    trial = reader.ledger.trials.get(key)
    path = _find_file(folder, key, summary, query, trial)
    if path.is_dir():
        for each in _files(path):
            say(str(each.relative_to(path)))
    elif not await _copy(path, 0, printer) and path.name == LOG:
        say(f"The agent printed nothing.{_failure(trial)}", to_stderr=True)
    printer.write(b"", is_last=True)


async def _follow(
    folder: Path, key: TrialKey, summary: ScenarioSummary, query: LogQuery, reader: Reader, printer: Printer
) -> None:
    """Print a file as it grows, attempt after attempt, until the trial has ended."""
    attempt, at = query.attempt or 1, 0
    while True:
        is_at_work = await anyio.to_thread.run_sync(holder, folder) is not None
        await catch_up(reader)
        trial = reader.ledger.trials.get(key)
        newest = trial.attempts if trial else 0
        place = attempt_folder(folder, key, summary.name, attempt)
        path = place / query.file
        if path.is_dir() or not path.resolve().is_relative_to(place.resolve()):
            raise UsageError(f"--file {query.file} is no file that can be followed: leave out -f, or name another.")
        at = await _copy(path, at, printer)
        is_over = not is_at_work or reader.ledger.is_finished(key)
        if attempt < newest and query.attempt is None:
            attempt, at = attempt + 1, 0
            say(f"--- attempt {attempt}", to_stderr=True)
        elif is_over or attempt < newest:
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
    place = attempt_folder(folder, key, summary.name, query.attempt or trial.attempts)
    if not place.is_dir():
        raise UsageError(f"{summary.name} has no attempt {query.attempt}: there are {trial.attempts}.")
    path = place / query.file
    if not path.exists() or not path.resolve().is_relative_to(place.resolve()):
        known = ", ".join(sorted(each.name for each in place.iterdir())) or "none"
        raise UsageError(f"{summary.name} has no file {query.file}. There are: {known}.{_failure(trial)}")
    return path


def _failure(trial: Trial | None) -> str:
    """A sentence with the failure of a trial; "" if it did not fail."""
    if trial is None or trial.failure is None:
        return ""
    return f" The trial failed: {trial.failure}: {shortened(trial.message, MESSAGE_WIDTH)}"


def _list(folder: Path, plan: Plan, ledger: Ledger) -> Iterator[str]:
    """Yield a line for each attempt that has begun: its trial, its state, and the files in its folder."""
    names = {each.id: each.name for each in plan.scenarios}
    for key in plan:
        if (trial := ledger.trials.get(key)) is None:
            continue
        for attempt in range(1, trial.attempts + 1):
            state = str((trial.attempt and trial.attempt.stage) or "waiting")
            if attempt < trial.attempts:
                state = "given up"
            elif trial.outcome is not None:
                state = number(trial.score) if trial.outcome is Outcome.SCORED else str(trial.outcome)
            place = attempt_folder(folder, key, names[key.scenario], attempt)
            files = ", ".join(sorted({each.relative_to(place).parts[0] for each in _files(place)}))
            yield f"{names[key.scenario]} {key.arm} {key.number} attempt {attempt} {state}: {files}"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
