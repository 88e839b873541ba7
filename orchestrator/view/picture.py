"""The live picture of a sweep: as many lines as a window has room for, made anew each time.

A row costs something only if it is shown, and an interval only when trials finished, so that the picture of thousands
of trials in flight costs what the picture of a few does.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.printable import printable
from orchestrator.core.records import Outcome, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.rundir.journal import now
from orchestrator.view.console import Window
from orchestrator.view.in_flight import LogEnd, TrialInFlight, attempts_in_flight, end_of_log, in_flight
from orchestrator.view.interval import interval
from orchestrator.view.overview import SILENT_S, dollars, label
from orchestrator.view.report import duration, number, span
from orchestrator.view.tables import Listing, Look, TableColumn, Words, fitted, laid_out, plain, styled, width_of

#: Seconds between two computations of the intervals, at least.
INTERVALS_S: Final = 5.0
#: Failures and remarks that are shown, and the lines that facts may take.
FAILURES: Final = 3
REMARKS: Final = 3
FACT_LINES: Final = 3
#: Cells that the last line of a log needs to be worth a column.
_LINE_CELLS: Final = 12
#: Cells of a name on a narrow window.
_NAME_CELLS: Final = 12
_GAP: Final = "  "


class Status(Protocol):
    """Facts about a running sweep that are not in the ledger."""

    @property
    def phase(self) -> str:
        """The current phase, in a few words."""

    @property
    def troubles(self) -> Sequence[str]:
        """Things that delay it or may delay it; a sentence each."""

    @property
    def stop(self) -> str | None:
        """The reason why no new trial starts; None while trials start."""

    @property
    def is_asked_to_stop(self) -> bool:
        """True after a signal to stop."""

    @property
    def is_ending(self) -> bool:
        """True while attempts in flight are being ended."""

    @property
    def in_flight(self) -> Mapping[Stage, int]:
        """The number of attempts under way, by stage."""

    @property
    def trials(self) -> Iterable[TrialKey]:
        """The trials with an attempt under way, those first that began first."""

    @property
    def longest_left(self) -> float:
        """The most seconds that attempts in flight may still take."""

    @property
    def devboxes(self) -> int:
        """The number of devboxes that may be in flight now."""

    @property
    def is_reduced(self) -> bool:
        """True if the endpoint pushed back and `devboxes` is lowered."""

    @property
    def spent(self) -> Sequence[str]:
        """How much of each budget is used, a few words each."""


@dataclass(slots=True)
class Tally:
    """The finished trials of an arm, counted as they finish."""

    planned: int
    done: int = 0
    failed: int = 0
    flagged: int = 0
    scored: int = 0
    total: float = 0.0
    #: The scores of each scenario, or of each trial where there is one scenario alone.
    scores: dict[object, list[float]] = field(default_factory=dict)
    #: Those that were done before this process began to count.
    done_before: int = 0
    #: The interval of the mean, and the number of scores that it is of.
    span: str = "-"
    spanned: int = 0

    @property
    def mean(self) -> float | None:
        return self.total / self.scored if self.scored else None


class Counts:
    """Counts the trials of a plan as they finish. Each look costs what has finished since the last one."""

    def __init__(self, ledger: Ledger, plan: Plan) -> None:
        self._ledger = ledger
        self._plan = plan
        self._begin()

    def _begin(self) -> None:
        """Count from the start, and leave nothing to take."""
        planned = len(self._plan) // max(1, len(self._plan.arms))
        self.arms = {arm: Tally(planned) for arm in self._plan.arms}
        self.done: list[TrialKey] = []
        #: Those that nobody has taken yet.
        self._fresh = deque[TrialKey]()
        self.began = time.monotonic()
        #: The number of finished trials that were looked at, and the last of them.
        self._looked, self._last = 0, list[TrialKey]()
        self._spanned_at = float("-inf")
        self.look()
        self._fresh.clear()
        self.done_before = len(self.done)
        for tally in self.arms.values():
            tally.done_before = tally.done

    def look(self) -> None:
        """Count what has finished since the last look; anew, if a trial was reopened."""
        finished = self._ledger.finished
        if finished[max(0, self._looked - 1) : self._looked] != self._last:
            self._begin()
        for key in finished[self._looked :]:
            if key in self._plan:
                self._count(key)
        self._looked, self._last = len(finished), finished[-1:]

    def take(self) -> Iterator[tuple[int, TrialKey]]:
        """The trials that have finished since they were last taken, each with its number among the finished ones."""
        self.look()
        while self._fresh:
            key = self._fresh.popleft()
            yield len(self.done) - len(self._fresh), key

    def _count(self, key: TrialKey) -> None:
        trial, tally = self._ledger.trials[key], self.arms[key.arm]
        self.done.append(key)
        self._fresh.append(key)
        tally.done += 1
        tally.failed += trial.outcome is Outcome.FAILED
        tally.flagged += bool(trial.flags)
        if trial.score is not None:
            tally.scored += 1
            tally.total += trial.score
            of = key.scenario if len(self._plan.scenarios) > 1 else key
            tally.scores.setdefault(of, []).append(trial.score)

    def span_all(self) -> None:
        """Compute the intervals whose scores have changed, now and then."""
        if time.monotonic() < self._spanned_at + INTERVALS_S:
            return
        for tally in self.arms.values():
            if tally.scored != tally.spanned:
                tally.span, tally.spanned = span(*interval([*tally.scores.values()])), tally.scored
        self._spanned_at = time.monotonic()

    @property
    def failed(self) -> int:
        return sum(tally.failed for tally in self.arms.values())

    @property
    def headline(self) -> str:
        done, planned = len(self.done), len(self._plan)
        running = sum(count for stage, count in self._ledger.stages.items() if stage is not Stage.RELEASE)
        scored = sum(tally.scored for tally in self.arms.values())
        total = sum(tally.total for tally in self.arms.values())
        parts = [
            f"{done}/{planned} done",
            f"{running} running",
            f"{max(0, planned - done - running)} queued",
            f"mean {number(total / scored if scored else None)}",
        ]
        return " · ".join([*parts, *([f"{self.failed} failed"] if self.failed else [])])


class Picture:
    """Draws a sweep. `folder` is the run folder; `read_logs` looks at the logs of the trials that were drawn last."""

    def __init__(self, *, ledger: Ledger, plan: Plan, state: Status, folder: Path, counts: Counts) -> None:
        self._ledger = ledger
        self._plan = plan
        self._state = state
        self._folder = folder
        self._counts = counts
        #: The ends of the logs of the trials that are drawn.
        self._ends: dict[Path, LogEnd] = {}

    def lines(self, window: Window, remarks: Sequence[str] = ()) -> list[str]:
        """Draw it in a window. A quarter of that is left to the trials that have finished."""
        width, is_coloured = window.width, window.is_coloured
        height = max(4, window.height - max(1, window.height // 4))
        self._counts.look()
        self._counts.span_all()
        facts = [*_flowed(self._facts(), width, FACT_LINES)]
        arms = [*self._arms(width, is_coloured=is_coloured)]
        noted = [(printable(each), Look.PARTLY) for each in remarks[-REMARKS:]]
        noted = [(line, look) for words, look in noted for line in _wrapped(words, width)][: height // 2]
        failures = [*self._failures()]
        head: list[Words] = [self._headline(width), *((fact, Look.FAINT) for fact in facts)]

        room = height - len(head) - len(noted)
        arms = arms[: max(2, room // 3 + 1)]
        failures = failures[max(0, len(failures) - max(0, room - len(arms)) // 4) :]
        rows = self._rows(width, room - len(arms) - len(failures), is_coloured=is_coloured)
        lines = [_fit(each, width, is_coloured=is_coloured) for each in head]
        lines += [*arms, *rows, *(_fit(each, width, is_coloured=is_coloured) for each in [*failures, *noted])]
        return lines[:height]

    def read_logs(self) -> None:
        """Look at the logs that are drawn. Blocks; for a thread of its own, while others draw."""
        for path, known in list(self._ends.items()):
            end = end_of_log(path, known)
            if path in self._ends:
                self._ends[path] = end

    def _headline(self, width: int) -> Words:
        cells = min(30, width // 6)
        filled = round(cells * len(self._counts.done) / max(1, len(self._plan)))
        bar = f"{'━' * filled}{'╌' * (cells - filled)} " if width >= 60 else ""
        return f"{bar}{self._counts.headline}", Look.HEAD

    def _facts(self) -> Iterator[str]:
        stages = self._ledger.stages
        yield self._state.phase
        yield " ".join(f"{stage} {stages[stage]}" for stage in Stage if stages[stage]) or "waiting"
        elapsed = time.monotonic() - self._counts.began
        yield duration(elapsed)
        fresh = len(self._counts.done) - self._counts.done_before
        if fresh and self._ledger.paused is None:
            left = len(self._plan) - len(self._counts.done)
            yield f"{fresh / max(1.0, elapsed) * 60:.1f}/min"
            yield f"about {duration(elapsed / fresh * left)} left"
        used = sum(count for stage, count in stages.items() if stage is not Stage.START)
        yield f"devboxes {used}/{self._state.devboxes}{self._cause()}"
        yield from self._state.spent

    def _cause(self) -> str:
        """Why the limit of devboxes is another than it was."""
        if self._state.is_reduced:
            return ", the endpoint pushes back"
        changed = [each for each in self._ledger.orders if each.order == "set" and "devboxes" in each.words]
        return f", set by {printable(changed[-1].giver)}" if changed else ""

    def _arms(self, width: int, *, is_coloured: bool) -> Iterator[str]:
        tallies: list[dict[str, Any]] = [
            {"arm": printable(arm), "tally": tally} for arm, tally in self._counts.arms.items()
        ]
        columns = {
            "arm": TableColumn(heading="arm", words=lambda row: row["arm"], is_text=True),
            "done": TableColumn(heading="done", words=lambda row: f"{row['tally'].done}/{row['tally'].planned}"),
            "mean": TableColumn(heading="mean", words=lambda row: number(row["tally"].mean)),
            "failed": TableColumn(heading="failed", words=lambda row: _alarming(row["tally"].failed)),
            "left": TableColumn(heading="left", words=lambda row: self._left(row["tally"])),
            "interval": TableColumn(heading="95 % interval", words=lambda row: row["tally"].span),
            "cost": TableColumn(heading="cost", words=lambda row: dollars(self._ledger.costs.get(row["arm"]))),
            "flagged": TableColumn(heading="flagged", words=lambda row: str(row["tally"].flagged)),
        }
        names = max([len("arm"), *(width_of(row["arm"]) for row in tallies)])
        used, shown = min(names, max(_NAME_CELLS, width // 4)), ["arm"]
        for row in tallies:
            row["arm"] = fitted(row["arm"], used)
        for name, column in [*columns.items()][1:]:
            cells = max([len(column.heading), *(len(plain(column.words(row))) for row in tallies)])
            if used + len(_GAP) + cells <= width:
                used += len(_GAP) + cells
                shown.append(name)
        ordered = [column for name, column in columns.items() if name in shown]
        yield from laid_out(Listing(rows=tallies, columns=ordered), None, is_coloured=is_coloured)

    def _left(self, tally: Tally) -> str:
        fresh, left = tally.done - tally.done_before, tally.planned - tally.done
        if not left or not fresh or self._ledger.paused is not None:
            return "-"
        return duration((time.monotonic() - self._counts.began) / fresh * left)

    def _rows(self, width: int, room: int, *, is_coloured: bool) -> Sequence[str]:
        """The trials in flight that there is room for, those first that began first."""
        found = [*attempts_in_flight(self._ledger, self._state.trials, max(0, room - 1))]
        at = now()
        before, self._ends = self._ends, {}

        def end_of(path: Path) -> LogEnd:
            self._ends[path] = before.get(path, _UNREAD)
            return self._ends[path]

        trials = [in_flight(key, attempt, self._plan, self._folder, now=at, end_of=end_of) for key, attempt in found]
        if not trials:
            return []
        running = sum(count for stage, count in self._ledger.stages.items() if stage is not Stage.RELEASE)
        if running > len(trials) and len(trials) > 1:
            trials = trials[: room - 2]
            more = [styled(fitted(f"and {running - len(trials)} more: sweep status lists them", width), Look.FAINT)]
        else:
            more = []
        return [*laid_out(self._in_flight(trials, width), None, is_coloured=is_coloured), *more]

    def _in_flight(self, trials: Sequence[TrialInFlight], width: int) -> Listing:
        rows: list[dict[str, Any]] = [
            {
                "age": duration(each.age),
                "trial": _named(each.key, self._plan),
                "stage": printable(_doing(each, self._plan)),
                "idle": (duration(each.idle), Look.BAD if each.idle >= SILENT_S else Look.PLAIN),
                "line": each.line,
            }
            for each in trials
        ]
        cells = {name: max(width_of(plain(row[name])) for row in rows) for name in ("age", "stage", "idle")}
        longest = max(sum(map(width_of, row["trial"])) for row in rows)
        room = width - max(len("age"), cells["age"]) - max(len("idle"), cells["idle"]) - 3 * len(_GAP)
        stage = min(cells["stage"], max(_NAME_CELLS, room // 4), room // 2)
        name = min(longest, max(_NAME_CELLS, room * 2 // 5), room - stage)
        line = room - max(stage, len("stage")) - max(name, len("trial")) - len(_GAP)
        columns = [
            TableColumn(heading="age", words=lambda row: row["age"]),
            TableColumn(heading="trial", words=lambda row: _fitted_name(row["trial"], name), is_text=True),
            TableColumn(heading="stage", words=lambda row: fitted(row["stage"], stage), is_text=True),
            TableColumn(heading="idle", words=lambda row: row["idle"]),
        ]
        if line >= _LINE_CELLS:
            last = TableColumn(
                heading="last line", words=lambda row: (fitted(row["line"], line), Look.FAINT), is_text=True
            )
            columns.append(last)
        return Listing(rows=rows, columns=columns)

    def _failures(self) -> Iterator[Words]:
        for notice in self._ledger.latest_failures[-FAILURES:]:
            verb = "failed" if notice.is_final else "again"
            message = " ".join(notice.message.split())
            yield printable(f"{verb}  {label(notice.trial, self._plan)}  {notice.error}: {message}"), Look.BAD


_UNREAD: Final = LogEnd()


def _named(key: TrialKey, plan: Plan) -> tuple[str, str]:
    """The scenario of a trial, and what tells the trial from others of it."""
    name = plan.by_id[key.scenario].name
    return printable(name), printable(label(key, plan)[len(name) :])


def _fitted_name(parts: tuple[str, str], width: int) -> str:
    """The name of a trial in so many cells: the scenario gives way before what comes after it."""
    name, rest = parts
    left = width - width_of(rest)
    return f"{fitted(name, left)}{rest}" if left >= _NAME_CELLS // 2 else fitted(f"{name}{rest}", width)


def _doing(trial: TrialInFlight, plan: Plan) -> str:
    if not trial.step:
        return trial.stage.doing
    names = [step.name for step in plan.by_id[trial.key.scenario].steps]
    return f"{trial.step} {names.index(trial.step) + 1}/{len(names)} {trial.stage.doing}"


def _alarming(count: int) -> Words:
    return str(count), Look.BAD if count else Look.PLAIN


def _flowed(parts: Iterable[str], width: int, most: int) -> Iterator[str]:
    """The parts, on as few lines as they fit on, at `most` so many."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        if lines[-1] and width_of(joined) > width:
            lines.append(part)
        else:
            lines[-1] = joined
    yield from lines[:most]


def _wrapped(words: str, width: int) -> Iterator[str]:
    """A sentence on lines of this width."""
    line = ""
    for word in words.split(" "):
        joined = f"{line} {word}" if line else word
        if line and width_of(joined) > width:
            yield line
            line = word
        else:
            line = joined
    yield line


def _fit(words: Words, width: int, *, is_coloured: bool) -> str:
    text, look = words if isinstance(words, tuple) else (words, Look.PLAIN)
    text = fitted(text, width)
    return styled(text, look) if is_coloured else text
