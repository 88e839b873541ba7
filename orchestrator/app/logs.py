"""The files of attempts, on standard output: read from the run folder, whoever is at work in it."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final

import anyio

from orchestrator.app.attach import LOOK, catch_up
from orchestrator.engine.agent_log import is_cut
from orchestrator.engine.work import attempt_folder
from orchestrator.errors import UsageError
from orchestrator.journal import read_manifest
from orchestrator.ledger import Ledger, Trial
from orchestrator.model import Outcome, ScenarioSummary, TrialKey
from orchestrator.plan import Plan
from orchestrator.runs import Reader, holder, planned
from orchestrator.view.out import Out
from orchestrator.view.report import number, printable

_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Which file is meant. `arm` is None for the only one, `attempt` for the newest."""

    arm: str | None = None
    trial: int = 1
    attempt: int | None = None
    file: str = "agent.log"


async def run(folder: Path, scenario: str | None, which: Which, *, is_followed: bool) -> None:
    """Print a file, or list what there is. Raises UsageError for what there is not."""
    plan, reader = planned(read_manifest(folder)), await anyio.to_thread.run_sync(Reader, folder)
    await catch_up(reader)
    if scenario is None:
        _list(folder, plan, reader.ledger)
        return
    summary = _find_scenario(plan, scenario)
    key = TrialKey(summary.id, _find_arm(plan, which.arm), which.trial)
    if key not in plan:
        raise UsageError(f"{folder.name} has no trial {which.trial} of {summary.name}: there are {plan.trials}.")
    if is_followed:
        await _follow(folder, key, summary, which, reader)
        return
    path = _find_file(folder, key, summary, which, reader.ledger.trials.get(key))
    if path.is_dir():
        for each in _files(path):
            _say(f"{each.relative_to(path)}\n".encode(errors="replace"))
    else:
        _copy(path, 0)


async def _follow(folder: Path, key: TrialKey, summary: ScenarioSummary, which: Which, reader: Reader) -> None:
    """Print a file as it grows, attempt after attempt, until none will follow."""
    attempt, at = which.attempt or 1, 0
    while True:
        is_at_work = await anyio.to_thread.run_sync(holder, folder) is not None
        await catch_up(reader)
        trial = reader.ledger.trials.get(key)
        newest = trial.attempts if trial else 0
        path = attempt_folder(folder, key, summary.name, attempt) / which.file
        at = _copy(path, at)
        is_over = not is_at_work or reader.ledger.is_finished(key)
        if attempt < newest and which.attempt is None:
            attempt, at = attempt + 1, 0
            sys.stderr.write(f"--- attempt {attempt}\n")
        elif is_over or attempt < newest:
            return
        else:
            await anyio.sleep(LOOK)


def _copy(path: Path, at: int) -> int:
    """Print a file from byte `at` on; returns where it ends. One that is not there is empty yet."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < at:  # a process that goes on where another died writes again what was there; a cut is for good
            return size if is_cut(path) else at
        file.seek(at)
        while piece := file.read(_PIECE):
            _say(piece)
            at += len(piece)
    return at


def _say(data: bytes) -> None:
    """To standard output as it is, unbuffered: what follows it sees it at once. Raises BrokenPipeError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]


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
    if trial is None or trial.attempts == 0:
        raise UsageError(f"{summary.name} has not begun.")
    place = attempt_folder(folder, key, summary.name, which.attempt or trial.attempts)
    if not place.is_dir():
        raise UsageError(f"{summary.name} has no attempt {which.attempt}: there are {trial.attempts}.")
    path = place / which.file
    if not path.exists() or not path.resolve().is_relative_to(place.resolve()):
        known = ", ".join(sorted(each.name for each in place.iterdir()))
        raise UsageError(f"{summary.name} has no file {which.file}. There are: {known}.")
    return path


def _list(folder: Path, plan: Plan, ledger: Ledger) -> None:
    """A line for each attempt that has begun: what it is of, how it stands, and what is in its folder."""
    out, names = Out(highlight=False, soft_wrap=True), {each.id: each.name for each in plan.scenarios}
    for key in plan:
        trial = ledger.trials.get(key)
        for attempt in range(1, (trial.attempts if trial else 0) + 1):
            assert trial is not None
            place = attempt_folder(folder, key, names[key.scenario], attempt)
            what = f"{names[key.scenario]}  {key.arm}  {key.number}  attempt {attempt}  {_standing(trial, attempt)}"
            files = ", ".join(sorted({each.relative_to(place).parts[0] for each in _files(place)}))
            out.print(printable(f"{what}: {files}"), markup=False)


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
