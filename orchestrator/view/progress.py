"""The progress of a sweep, pulled from the ledger a few times a second, never pushed by the engine.

It is shown in an output format: as a screen that is redrawn, as lines without a terminal, or as records for programs.
"""

import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import anyio
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.core.errors import leaf
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted, printable, shortened
from orchestrator.core.records import Outcome, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.view import console
from orchestrator.view.formats import Format, Record
from orchestrator.view.report import as_record, as_table, duration, number, report

REDRAW_S: Final = 0.2
#: Time between two summaries among lines.
SUMMARY_S: Final = 30.0
#: How long a phase may last before it is named; before the first picture, lines wait longer for a slow start.
SLOW_S: Final = 2.0
SLOW_START_S: Final = 10.0
#: Phases that need no name, because trials finish or a stop is explained.
TRIALS_RUN: Final = frozenset({"running", "draining", "releasing"})
#: Columns of the table without a terminal to measure.
TABLE_WIDTH: Final = 200
#: Columns of a line without one.
PLAIN_WIDTH: Final = 80


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
    def longest_left(self) -> float:
        """The most seconds that attempts in flight may still take."""

    @property
    def devboxes(self) -> int:
        """The number of devboxes that may be in flight now."""

    @property
    def is_reduced(self) -> bool:
        """True if the endpoint pushed back and `devboxes` is lowered."""


class SlowPhases:
    """Names a phase once when it lasts longer than `slow` seconds; phases that run trials show by themselves."""

    def __init__(self, state: Status, slow: float = SLOW_S) -> None:
        self._state = state
        self._slow = slow
        self._phase = ""
        self._since = 0.0  # the loop's time
        self._is_told = False

    def due(self) -> str | None:
        """Return the phase if it has lasted long enough and was not named yet."""
        phase, now = self._state.phase, anyio.current_time()
        if phase != self._phase:
            self._phase, self._since, self._is_told = phase, now, phase in TRIALS_RUN
        if self._is_told or now - self._since < self._slow:
            return None
        self._is_told = True
        return f"{phase[0].upper()}{phase[1:]} …"


async def tell_slow_phases(state: Status, output: Format, until: anyio.Event) -> None:
    """Name slow phases before there is a picture."""
    slow = SlowPhases(state, SLOW_S if output.is_redrawn else SLOW_START_S)
    while not until.is_set():
        if (words := slow.due()) is not None:
            console.say(words, to_stderr=output.is_for_programs)
        await anyio.sleep(REDRAW_S)


@asynccontextmanager
async def shown(subject: str, doing: Callable[[], str], output: Format) -> AsyncIterator[None]:
    """Show what is being done with a subject, on a terminal."""

    async def draw() -> None:
        while True:
            line = shortened(f"{subject}  {doing()}", console.Page(PLAIN_WIDTH).width - 1)
            console.show([line])
            await anyio.sleep(REDRAW_S)

    try:
        async with anyio.create_task_group() as tasks:
            if output.is_redrawn:
                tasks.start_soon(draw)
            yield
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise leaf(group) from None
    finally:
        console.show([])


class Progress:
    """Shows a sweep: `show()` runs until it is canceled, `finish()` prints the end.

    `opening` begins the first line, such as "Starting night"; `folder` is the run folder.
    """

    def __init__(
        self, *, ledger: Ledger, plan: Plan, state: Status, folder: Path, output: Format, opening: str
    ) -> None:
        self._ledger = ledger
        self._plan = plan
        self._state = state
        self._folder = folder
        self._output = output
        self._page = console.Page(TABLE_WIDTH)
        self._names = {scenario.id: scenario.name for scenario in plan.scenarios}
        self._begin()
        self._slow = SlowPhases(state)
        self._remarked: set[str] = set()
        owed = len(plan) - len(self._done)
        self.say(f"{opening}: {counted(len(plan), 'trial')}, {owed} to do.")

    def _begin(self) -> None:
        """Count finished trials from the start and take them as told. Later looks count only new ones."""
        self._began = time.monotonic()
        #: The number of finished trials that were looked at, and the last of them.
        self._looked, self._last = 0, list[TrialKey]()
        self._done: list[TrialKey] = []
        self._failed = self._scored = 0
        self._score = 0.0
        self._look()
        self._done_before = self._told = len(self._done)

    def say(self, *messages: str) -> None:
        """Print messages for people, each on a line of its own."""
        for message in messages:
            console.say(message, to_stderr=self._output.is_for_programs)

    async def show(self) -> None:
        """Draw until canceled."""
        due = anyio.current_time() + SUMMARY_S
        while True:
            if self._output.is_redrawn:
                console.show(self._page.lay_out(self._screen(), max_lines=self._page.height))
            else:
                for key in self._new_trials():
                    self._tell_trial(key)
                if (phase := self._slow.due()) is not None:
                    self.say(phase)
                remarks = self._remarks()
                self.say(*(words for about, words in remarks.items() if about not in self._remarked))
                self._remarked = set(remarks)
                if not self._output.is_for_programs and anyio.current_time() >= due:
                    self.say(self._headline())
                    due += SUMMARY_S
            await anyio.sleep(REDRAW_S)

    def finish(self) -> None:
        """Print the end: the last trials, the report, and the paths of the files."""
        console.show(())
        for key in self._new_trials():
            self._tell_trial(key)
        whole = report(self._ledger, self._plan, self._folder)
        left = len(self._plan) - len(self._done)
        stop = self._state.stop if left else None
        if self._output.is_for_programs:
            stopped = {"stopped": stop} if stop else {}
            console.print_record({"event": "sweep"} | as_record(whole) | stopped, self._output)
        else:
            self._page.print(as_table(whole))
        if stop:
            owed = f"{left} of {counted(len(self._plan), 'trial')} {'is' if left == 1 else 'are'} left"
            self.say(f"Stopped: {_cause(stop)}. {owed}: run the sweep again for {'it' if left == 1 else 'them'}.")

    def _remarks(self) -> dict[str, str]:
        """Return lines about delays or a stop. The key of a line stays the same while only its numbers change."""
        remarks = {re.sub(r"\d[\d:.]*", "", trouble): trouble for trouble in self._state.troubles}
        stages = [f"{count} {stage.doing}" for stage, count in self._state.in_flight.items()]
        if self._state.stop is None or not stages:
            return remarks
        if self._state.is_ending:
            return remarks | {"end": "Ending the agents and releasing the devboxes."}
        again = "again" if self._state.is_asked_to_stop else "twice"
        words = (
            f"Stopping: {_cause(self._state.stop)}. No new trials start, running trials finish: {', '.join(stages)}; "
            f"at most {duration(self._state.longest_left)} more. Press Ctrl-C {again} to end them now."
        )
        return remarks | {f"stop {again}": words}

    def _new_trials(self) -> Iterator[TrialKey]:
        """Yield trials that have finished since the last look."""
        self._look()
        while not self._output.is_redrawn and self._told < len(self._done):
            self._told += 1
            yield self._done[self._told - 1]

    def _look(self) -> None:
        """Count the trials of the plan that have finished since the last look."""
        finished = self._ledger.finished
        if finished[max(0, self._looked - 1) : self._looked] != self._last:  # a trial was reopened
            self._begin()
        for key in finished[self._looked :]:
            if key in self._plan:
                trial = self._ledger.trials[key]
                self._done.append(key)
                self._failed += trial.outcome is Outcome.FAILED
                if trial.score is not None:
                    self._scored += 1
                    self._score += trial.score
        self._looked, self._last = len(finished), finished[-1:]

    def _tell_trial(self, key: TrialKey) -> None:
        trial = self._ledger.trials[key]
        facts: Record = {
            "event": "trial",
            "scenario": key.scenario,
            "scenario_name": self._name(key),
            "arm": key.arm,
            "trial": key.number,
            "outcome": trial.outcome,
            "score": trial.score,
            "flags": trial.flags,
            "failure": trial.failure,
            "seconds": round(trial.seconds, 3),
        }
        if self._output.is_for_programs:
            console.print_record(facts, self._output)
            return
        ending = number(trial.score) if trial.outcome is Outcome.SCORED else f"{trial.outcome}: {trial.failure}"
        flags = f" ({', '.join(trial.flags)})" if trial.flags else ""
        counted = f"[{self._told}/{len(self._plan)}]"
        self.say(f"{counted} {self._label(key)}  {ending}{flags}  {duration(trial.seconds)}")

    def _screen(self) -> RenderableType:
        self._look()
        bar = Table.grid(padding=(0, 1))
        width = min(40, self._page.width // 5)
        bar.add_row(
            ProgressBar(total=max(1, len(self._plan)), completed=len(self._done), width=width), Text(self._headline())
        )
        counts = [f"{stage} {self._ledger.stages[stage]}" for stage in Stage if self._ledger.stages[stage]]
        elapsed = time.monotonic() - self._began
        facts = [self._state.phase, " ".join(counts) or "waiting", duration(elapsed)]
        if fresh := len(self._done) - self._done_before:
            left = len(self._plan) - len(self._done)
            facts += [f"{fresh / elapsed * 60:.1f}/min", f"about {duration(elapsed / fresh * left)} left"]
        if self._state.is_reduced:
            facts.append(f"the endpoint pushes back: {self._state.devboxes} devboxes")
        parts: list[RenderableType] = [bar, Text(" · ".join(facts), style="dim")]
        for notice in self._ledger.latest_failures[-3:]:
            verb = "failed" if notice.is_final else "again"
            message = printable(" ".join(notice.message.split()))
            words = f"{verb}  {self._label(notice.trial)}  {notice.error}: {message}"
            parts.append(Text(words, style="red", no_wrap=True, overflow="ellipsis"))
        parts += [Text(printable(line), style="yellow") for line in self._remarks().values()]
        return Group(*parts)

    def _headline(self) -> str:
        done = len(self._done)
        running = sum(count for stage, count in self._ledger.stages.items() if stage is not Stage.RELEASE)
        parts = [
            f"{done}/{len(self._plan)} done",
            f"{running} running",
            f"{max(0, len(self._plan) - done - running)} queued",
            f"mean {number(self._score / self._scored if self._scored else None)}",
        ]
        if self._failed:
            parts.append(f"{self._failed} failed")
        return " · ".join(parts)

    def _name(self, key: TrialKey) -> str:
        return self._names.get(key.scenario, key.scenario)

    def _label(self, key: TrialKey) -> str:
        parts = [self._name(key)]
        if len(self._plan.arms) > 1:
            parts.append(key.arm)
        if self._plan.trials > 1:
            parts.append(f"#{key.number}")
        return printable(" ".join(parts))


def _cause(stop: str) -> str:
    """The reason for a stop, in words for people."""
    return "Ctrl-C" if stop == "SIGINT" else stop
