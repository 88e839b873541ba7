"""One trial for people: its result, stages, steps, scorers, patch, network, files, and the end of its agent's log.

Of what is long the part that says most is shown, with the command that prints all of it.
"""

import os
import re
import shlex
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from orchestrator.core.ledger import Trial
from orchestrator.core.printable import counted
from orchestrator.core.records import Flag, Outcome, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.rundir.files import AGENT_LOG
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.rundir.sweep_index import trial_as_typed
from orchestrator.view.in_flight import without_sequences
from orchestrator.view.overview import dollars, label, local, rounded, where_scored
from orchestrator.view.report import SOLVED, amount, duration, number
from orchestrator.view.tables import Look, Words

#: Lines of a patch, and of each log, and files that are listed.
PATCH_LINES: Final = 40
LOG_LINES: Final = 12
FILES: Final = 30
#: The part of a file that is read, and the characters of a line that are shown.
_PART_BYTES: Final = 1 << 18
_LINE_WIDTH: Final = 300
#: The beginnings of the lines of a patch that are counted: of a file, and of a line that is added or removed.
_KINDS: Final = re.compile(rb"(diff(?= --git )|\+(?!\+\+ )|-(?!-- ))")
#: Columns of the bar of the longest stage.
_BAR: Final = 30


class TrialPage:
    """What people see of a trial. Reading blocks."""

    def __init__(self, sweep: RecordedSweep, key: TrialKey) -> None:
        self._sweep = sweep
        self._key = key
        self._plan = sweep.plan
        self._trial = sweep.ledger.trials.get(key, Trial())
        self._row: Mapping[str, Any] = sweep.results.get(key, {}) if self._trial.outcome is not None else {}
        self._folder = sweep.attempt_folder(key, max(1, self._trial.attempts))

    def record(self) -> dict[str, Any]:
        """The trial for programs: its result, and the attempt that is under way."""
        attempt = self._sweep.ledger.under_way(self._key)
        return {
            "event": "trial",
            "state": self._state,
            "scenario": self._key.scenario,
            "scenario_name": self._plan.by_id[self._key.scenario].name,
            "arm": self._key.arm,
            "trial": self._key.number,
            "attempts": self._trial.attempts,
            "cost_usd": rounded(self._trial.cost),
            "tokens": self._trial.tokens,
            "stage": attempt.stage if attempt else None,
            "stages": attempt.stages if attempt else {},
            "failures": self._trial.failures,
            "folder": str(self._folder),
            "result": self._row or None,
        }

    def lines(self) -> Iterator[Words]:
        """The lines of the page, from what it came to down to the end of the agent's log."""
        yield f"{label(self._key, self._plan)}: {self._state}", Look.HEAD
        yield from self._verdict()
        yield from self._stages()
        yield from self._steps()
        yield from self._scorers()
        yield from self._network()
        yield from self._patch()
        yield from self._files()
        yield from self._log("Its agent's last words", self._file(AGENT_LOG))

    @property
    def _state(self) -> str:
        trial = self._trial
        if trial.outcome is Outcome.SCORED:
            return f"scored {number(trial.score)}"
        if trial.outcome is not None:
            return str(trial.outcome)
        attempt = self._sweep.ledger.under_way(self._key)
        if attempt is not None and attempt.stage is not None:
            return attempt.stage.doing
        return "waits for another attempt" if trial.attempts else "not begun"

    def _verdict(self) -> Iterator[Words]:
        failure = self._row.get("failure")
        if failure:
            yield f"  {failure['class']} in {failure.get('stage')}: {_flat(failure['message'])}", Look.BAD
        meanings = {flag.value: flag.meaning for flag in Flag}
        for flag in self._trial.flags:
            yield f"  {flag}: {meanings.get(flag, 'a flag of another version')}", Look.PARTLY
        facts = []
        if self._row:
            facts.append(f"started {local(self._row['started'])}")
        facts.append(counted(self._trial.attempts, "attempt"))
        if self._trial.cost is not None:
            facts.append(dollars(self._trial.cost))
        if self._trial.tokens:
            facts.append(f"{amount(self._trial.tokens)} tokens")
        ends = {name: self._row.get(name) for name in ("exit_status", "exit_reason")}
        facts += [f"{name.replace('_', ' ')} {value}" for name, value in ends.items() if value is not None]
        yield f"  {' · '.join(facts)}"
        for each in self._row.get("attempts", self._trial.failures):
            if each["failure"] and each["failure"] != failure:
                gone = each["failure"]
                yield f"  attempt {each['attempt']}: {gone['class']} in {gone.get('stage')}: {_flat(gone['message'])}"

    def _stages(self) -> Iterator[Words]:
        attempt = self._sweep.ledger.under_way(self._key)
        stages: Mapping[str, Mapping[str, float]] = self._row.get("stages") or (attempt.stages if attempt else {})
        if not stages:
            return
        yield "Stages", Look.HEAD
        most = max([spent["seconds"] for spent in stages.values()] + [0.001])
        for name in (stage.value for stage in Stage if stage in stages):
            seconds, waited = stages[name]["seconds"], stages[name].get("waited", 0.0)
            wait = f"  waited {duration(waited)}" if waited >= 1 else ""
            yield f"  {name:<8} {_seconds(seconds):>9}  {'█' * round(_BAR * seconds / most)}{wait}".rstrip()

    def _steps(self) -> Iterator[Words]:
        attempt = self._sweep.ledger.under_way(self._key)
        steps = self._row.get("steps") or (attempt.steps if attempt else [])
        if steps:
            yield "Steps", Look.HEAD
        for step in steps:
            seconds = sum(spent["seconds"] for spent in step.get("stages", {}).values())
            flags = f"  {', '.join(step['flags'])}" if step.get("flags") else ""
            yield f"  {step['name']}: {number(step.get('score'))}  {_seconds(seconds)}{flags}"

    def _scorers(self) -> Iterator[Words]:
        if scorers := self._row.get("scorers"):
            yield f"Scorers {where_scored(self._row.get('scoring'))}".rstrip(), Look.HEAD
            for each in scorers:
                look = Look.GOOD if each["score"] >= SOLVED and each["state"] == "complete" else Look.BAD
                yield f"  {each['name']}: {number(each['score'])}  {each['state']}", look
        rewards = self._row.get("rewards") or {}
        if rewards:
            yield f"  rewards: {', '.join(f'{name} {value:g}' for name, value in rewards.items())}"
        for path in sorted(self._folder.glob("scorers/*.log")) + sorted(self._folder.glob("steps/*/scorers/*.log")):
            yield from self._log("Output of", path)

    def _network(self) -> Iterator[Words]:
        for word in ("reached", "refused"):
            hosts = (self._row.get("network") or {}).get(word)
            if hosts:
                named = ", ".join(f"{host} {count}" for host, count in islice(hosts.items(), FILES))
                yield f"Network, {word}", Look.HEAD
                yield f"  {named}"

    def _patch(self) -> Iterator[Words]:
        for path in [self._folder / "patch.diff", *sorted(self._folder.glob("steps/*/patch.diff"))]:
            lines = _first_lines(self._folder, path)
            if lines is None:
                continue
            shown, counts = lines
            yield f"Patch: {counted(counts['diff'], 'file')}, +{counts['+']} -{counts['-']}", Look.HEAD
            for line in shown:
                yield f"  {line}", {"+": Look.GOOD, "-": Look.BAD, "@": Look.PARTLY}.get(line[:1], Look.PLAIN)
            if counts.total() > len(shown):
                yield self._rest(path)

    def _files(self) -> Iterator[Words]:
        found = []
        for path in sorted(self._folder.rglob("*")):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((str(path.relative_to(self._folder)), status.st_size))
        if not found:
            return
        yield f"Files in {self._folder}", Look.HEAD
        for name, size in found[:FILES]:
            yield f"  {_size(size):>9}  {name}"
        if len(found) > FILES:
            yield f"  {'':9}  and {counted(len(found) - FILES, 'other')}"

    def _log(self, title: str, path: Path) -> Iterator[Words]:
        lines = _last_lines(self._folder, path)
        if not lines:
            return
        name = path.relative_to(self._folder)
        yield f"{title}" if path.name == AGENT_LOG else f"{title} {name}", Look.HEAD
        if len(lines) > LOG_LINES:
            yield self._rest(path)
        for line in lines[-LOG_LINES:]:
            yield f"  {line}"

    def _rest(self, path: Path) -> Words:
        command = f"sweep logs {trial_as_typed(self._sweep.folder, self._key, self._plan)}"
        if path.name != AGENT_LOG:
            command += f" --file {shlex.quote(str(path.relative_to(self._folder)))}"
        return f"  … all of it: {command}", Look.FAINT

    def _file(self, name: str) -> Path:
        """A file of the attempt, or of its last step."""
        steps = self._plan.by_id[self._key.scenario].steps
        places = [self._folder / "steps" / step.name / name for step in steps]
        return next((path for path in reversed(places) if path.exists()), self._folder / name)


def _first_lines(folder: Path, path: Path) -> tuple[list[str], Counter[str]] | None:
    """The first lines of a patch, and how many it has of each kind; None if it is not there."""
    if not _is_inside(folder, path):
        return None
    shown, counts = list[str](), Counter[str]()
    try:
        with path.open("rb") as file:
            for line in file:
                kind = _KINDS.match(line)
                counts[kind[1].decode() if kind else ""] += 1
                if len(shown) < PATCH_LINES:
                    shown.append(_as_line(line[: 4 * _LINE_WIDTH].decode(errors="replace")))
    except OSError:
        return None
    return shown, counts


def _last_lines(folder: Path, path: Path) -> list[str]:
    """The last lines of a log that have any words; none if it is not there."""
    if not _is_inside(folder, path):
        return []
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _PART_BYTES))
            text = file.read(_PART_BYTES).decode(errors="replace")
    except OSError:
        return []
    return [line for line in map(_as_line, text.split("\n")) if line]


def _is_inside(folder: Path, path: Path) -> bool:
    """False for a file that is not there, or that an agent linked to."""
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def _as_line(text: str) -> str:
    return without_sequences(text.rstrip("\r\n"))[:_LINE_WIDTH].rstrip().expandtabs(4)


def _flat(message: str) -> str:
    return " ".join(message.split())[:_LINE_WIDTH]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _size(size: int) -> str:
    return f"{size:,} B" if size < 100_000 else f"{amount(size)}B"
