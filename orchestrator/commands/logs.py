"""The files of attempts, on standard output: read from the run folder, whoever is at work in it."""

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

from orchestrator.commands.attach import LOOK, catch_up
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
from orchestrator.view.report import WORDS, number

_PIECE: Final = 1 << 20
#: What may be the beginning of a line's end or of a colour.
_UNFINISHED: Final = re.compile(r"(\r|\x1b(\[[0-9;:]{0,60})?)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Which file is meant. `arm` is None for the only one, `attempt` for the newest."""

    arm: str | None = None
    trial: int = 1
    attempt: int | None = None
    file: str = LOG


class Printer:
    """Prints files: byte for byte, or for a terminal that is to obey nothing in them but colours."""

    def __init__(self, *, is_raw: bool) -> None:
        self._is_raw = is_raw
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._kept = ""

    def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Unbuffered: what follows us sees it at once. Raises OSError."""
        if self._is_raw:
            _write(data)
            return
        text = self._kept + self._decoder.decode(data, is_last)
        unfinished = None if is_last else _UNFINISHED.search(text)
        self._kept = unfinished[0] if unfinished else ""
        _write(coloured(text.removesuffix(self._kept)).encode())


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(sys.stdout.fileno(), rest) :]
        except BlockingIOError:  # somebody who shares it has made it so
            wait_writable(sys.stdout.fileno())


async def run(folder: Path, scenario: str | None, which: Which, *, is_followed: bool, is_raw: bool) -> None:
    """Print a file, or list what there is. Raises UsageError for what there is not, BrokenPipeError without a reader.

    What a terminal would obey is shown as escapes, unless `is_raw`; colours are colours.
    """
    plan, reader = read_manifest(folder).plan, await anyio.to_thread.run_sync(Reader, folder)
    await catch_up(reader)
    if scenario is None:
        _list(folder, plan, reader.ledger)
        return
    summary = _find_scenario(plan, scenario)
    key = TrialKey(summary.id, _find_arm(plan, which.arm), which.trial)
    if key not in plan:
        raise UsageError(f"{folder.name} has no trial {which.trial} of {summary.name}: there are {plan.trials}.")
    printer = Printer(is_raw=is_raw or not sys.stdout.isatty())
    if is_followed:
        await _follow(folder, key, summary, which, reader, printer)
        return
    trial = reader.ledger.trials.get(key)
    path = _find_file(folder, key, summary, which, trial)
    if path.is_dir():
        for each in _files(path):
            say(str(each.relative_to(path)))
    elif not await _copy(path, 0, printer) and path.name == LOG:
        say(f"The agent printed nothing.{_failure(trial)}", to_stderr=True)
    printer.write(b"", is_last=True)


async def _follow(
    folder: Path, key: TrialKey, summary: ScenarioSummary, which: Which, reader: Reader, printer: Printer
) -> None:
    """Print a file as it grows, attempt after attempt, until none will follow."""
    attempt, at = which.attempt or 1, 0
    while True:
        is_at_work = await anyio.to_thread.run_sync(holder, folder) is not None
        await catch_up(reader)
        trial = reader.ledger.trials.get(key)
        newest = trial.attempts if trial else 0
        path = attempt_folder(folder, key, summary.name, attempt) / which.file
        at = await _copy(path, at, printer)
        is_over = not is_at_work or reader.ledger.is_finished(key)
        if attempt < newest and which.attempt is None:
            attempt, at = attempt + 1, 0
            say(f"--- attempt {attempt}", to_stderr=True)
        elif is_over or attempt < newest:
            printer.write(b"", is_last=True)
            return
        else:
            await anyio.sleep(LOOK)


async def _copy(path: Path, at: int, printer: Printer) -> int:
    """Print a file from byte `at` on; returns where it ends. One that is not there is empty yet."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < at:  # a process that goes on where another died writes again what was there; a cut is for good
            return size if is_cut(path) else at
        file.seek(at)
        while piece := file.read(_PIECE):
            # Not in the loop's thread: a terminal that takes nothing may be left with Ctrl-C all the same.
            await anyio.to_thread.run_sync(printer.write, piece, abandon_on_cancel=True)
            at += len(piece)
    return at


def _find_scenario(plan: Plan, wanted: str) -> ScenarioSummary:
    for summary in plan.scenarios:
        if wanted in {summary.id, summary.name}:
            return summary
    names = [summary.name for summary in plan.scenarios]
    near = get_close_matches(wanted, names, 3)
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(names[:10])}."
    raise UsageError(f"There is no scenario {wanted!r} in it. {hint}")


def _find_arm(plan: Plan, wanted: str | None) -> str:
    if wanted is None and len(plan.arms) == 1:
        return plan.arms[0]
    if wanted not in plan.arms:
        problem = "Say which arm" if wanted is None else f"There is no arm {wanted!r}"
        raise UsageError(f"{problem}: --arm {' or '.join(plan.arms)}.")
    return wanted


def _find_file(folder: Path, key: TrialKey, summary: ScenarioSummary, which: Which, trial: Trial | None) -> Path:
    """Raises UsageError saying what there is instead."""
    if summary.unsupported and (trial is None or trial.attempts == 0):
        raise UsageError(f"{summary.name} cannot run here: {summary.unsupported}.")
    if trial is None or trial.attempts == 0:
        raise UsageError(f"{summary.name} has not begun.")
    place = attempt_folder(folder, key, summary.name, which.attempt or trial.attempts)
    if not place.is_dir():
        raise UsageError(f"{summary.name} has no attempt {which.attempt}: there are {trial.attempts}.")
    path = place / which.file
    if not path.exists() or not path.resolve().is_relative_to(place.resolve()):
        known = ", ".join(sorted(each.name for each in place.iterdir())) or "none"
        raise UsageError(f"{summary.name} has no file {which.file}. There are: {known}.{_failure(trial)}")
    return path


def _failure(trial: Trial | None) -> str:
    """Why a trial failed, as one more sentence; nothing where it did not."""
    if trial is None or trial.failure is None:
        return ""
    return f" The trial failed: {trial.failure}: {shortened(trial.message, WORDS)}"


def _list(folder: Path, plan: Plan, ledger: Ledger) -> None:
    """A line for each attempt that has begun: what it is of, how it stands, and what is in its folder."""
    names = {each.id: each.name for each in plan.scenarios}
    for key in plan:
        trial = ledger.trials.get(key)
        for attempt in range(1, (trial.attempts if trial else 0) + 1):
            assert trial is not None
            place = attempt_folder(folder, key, names[key.scenario], attempt)
            what = f"{names[key.scenario]} {key.arm} {key.number} attempt {attempt} {_standing(trial, attempt)}"
            files = ", ".join(sorted({each.relative_to(place).parts[0] for each in _files(place)}))
            say(f"{what}: {files}")


def _standing(trial: Trial, attempt: int) -> str:
    if attempt < trial.attempts:
        return "given up"
    if trial.outcome is Outcome.SCORED:
        return number(trial.score)
    if trial.outcome is not None:
        return str(trial.outcome)
    at = trial.attempt.stage if trial.attempt is not None else None
    return str(at or "waiting")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
