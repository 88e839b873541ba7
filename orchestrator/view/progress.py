"""The live picture: pulled from the ledger a few times a second, never pushed by the engine.

Three styles of one picture: a screen that redraws itself, lines where there is no terminal, JSON lines for programs.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import anyio
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted, printable
from orchestrator.core.records import Outcome, TrialKey
from orchestrator.core.stages import DOING, Stage
from orchestrator.view import console
from orchestrator.view.report import as_json, as_table, duration, number, report

Style = Literal["terminal", "plain", "json"]

REDRAW: Final = 0.2
#: Seconds between two summaries where lines are all there is.
SUMMARY_EVERY: Final = 30.0
#: Seconds that a phase may last before it is told where nothing redraws itself; before there is a picture, a log needs
#: no word of a start that is merely slow.
SLOW: Final = 2.0
SLOW_START: Final = 10.0
#: Phases in which trials finish, or what is in flight is told of.
TRIALS_RUN: Final = frozenset({"running", "draining", "releasing"})
#: Columns of the table where there is no terminal to measure.
LINE: Final = 200


class State(Protocol):
    """What a picture shows that is not in the ledger."""

    @property
    def phase(self) -> str:
        """What is being done, in few words."""

    @property
    def troubles(self) -> Sequence[str]:
        """What holds it up, or might; a sentence each."""

    @property
    def stop(self) -> str | None:
        """Why no new trial is started; None while they are."""

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether it was a signal that stopped it."""

    @property
    def is_ending(self) -> bool:
        """Whether what is in flight is being ended."""

    @property
    def in_flight(self) -> Mapping[Stage, int]:
        """How many attempts are being made, by their stage."""

    @property
    def longest_left(self) -> float:
        """Seconds that those in flight may take yet."""

    @property
    def devboxes(self) -> int:
        """How many devboxes may be in flight now."""

    @property
    def is_reduced(self) -> bool:
        """Whether the endpoint pushed back."""


class SlowPhases:
    """What is being done, told once it takes long; what runs trials shows by itself."""

    def __init__(self, state: State, slow: float = SLOW) -> None:
        self._state = state
        self._slow = slow
        self._phase = ""
        #: The loop's time.
        self._since = 0.0
        self._is_told = False

    def due(self) -> str | None:
        """The phase, when it has lasted long enough and was not told."""
        phase, now = self._state.phase, anyio.current_time()
        if phase != self._phase:
            self._phase, self._since, self._is_told = phase, now, phase in TRIALS_RUN
        if self._is_told or now - self._since < self._slow:
            return None
        self._is_told = True
        return f"{phase[0].upper()}{phase[1:]} …"


async def tell_slow_phases(state: State, style: Style, until: anyio.Event) -> None:
    """Tell what is being done before there is a picture, where it takes long."""
    slow = SlowPhases(state, SLOW if style == "terminal" else SLOW_START)
    while not until.is_set():
        if (words := slow.due()) is not None:
            console.say(words, to_stderr=style == "json")
        await anyio.sleep(REDRAW)


class Progress:
    """`show()` runs until it is canceled; `finish()` draws the end. `opening` says what happens to which sweep."""

    def __init__(self, *, ledger: Ledger, plan: Plan, state: State, folder: Path, style: Style, opening: str) -> None:
        self._ledger = ledger
        self._plan = plan
        self._state = state
        self._folder = folder
        self._style = style
        self._page = console.Page(LINE)
        self._names = {scenario.id: scenario.name for scenario in plan.scenarios}
        self._begin()
        self._slow = SlowPhases(state)
        self._remarked: set[str] = set()
        owed = len(plan) - len(self._done)
        self.say(f"{opening}: {counted(len(plan), 'trial')}, {owed} to do.")

    def _begin(self) -> None:
        """Take what is finished now as told; it is counted once, and not for each picture."""
        self._began = time.monotonic()
        #: How many finished trials were looked at, and the last of them.
        self._looked, self._last = 0, list[TrialKey]()
        self._done: list[TrialKey] = []
        self._failed = self._scored = 0
        self._score = 0.0
        self._look()
        self._done_before = self._told = len(self._done)

    def say(self, *messages: str) -> None:
        """Tell the person at the screen something, each on a line of its own."""
        for message in messages:
            console.say(message, to_stderr=self._style == "json")

    async def show(self) -> None:
        """Draw until canceled."""
        if self._style != "terminal":
            await self._show_lines()
            return
        while True:
            console.show(self._page.lay_out(self._screen(), highest=self._page.height))
            await anyio.sleep(REDRAW)

    def finish(self) -> None:
        """Draw the end: the last lines, the table, where the files are."""
        console.show(())
        for line in self._new_lines():
            self._line(line)
        whole = report(self._ledger, self._plan, self._folder)
        left = len(self._plan) - len(self._done)
        stop = self._state.stop if left else None
        if self._style == "json":
            stopped = {"stopped": stop} if stop else {}
            console.say_json({"event": "sweep"} | as_json(whole) | stopped)
        else:
            self._page.print(as_table(whole))
        if stop:
            owed = f"{left} of {counted(len(self._plan), 'trial')} {'is' if left == 1 else 'are'} left"
            self.say(f"Stopped: {_cause(stop)}. {owed}: run the sweep again for {'it' if left == 1 else 'them'}.")

    async def _show_lines(self) -> None:
        due = anyio.current_time() + SUMMARY_EVERY
        while True:
            for line in self._new_lines():
                self._line(line)
            for words in self._news():
                self.say(words)
            if self._style == "plain" and anyio.current_time() >= due:
                self.say(self._headline())
                due += SUMMARY_EVERY
            await anyio.sleep(REDRAW)

    def _news(self) -> Iterator[str]:
        """What has changed besides the trials, once."""
        if (words := self._slow.due()) is not None:
            yield words
        remarks = self._remarks()
        yield from (words for about, words in remarks.items() if about not in self._remarked)
        self._remarked = set(remarks)

    def _remarks(self) -> dict[str, str]:
        """What holds the sweep up or ends it: lines, by what each is about however its numbers change."""
        remarks = {re.sub(r"\d[\d:.]*", "", trouble): trouble for trouble in self._state.troubles}
        stages = [f"{count} {DOING[stage]}" for stage, count in self._state.in_flight.items()]
        if self._state.stop is None or not stages:
            return remarks
        if self._state.is_ending:
            return remarks | {"end": "Ending the agents and releasing the devboxes."}
        again = "again" if self._state.is_asked_to_stop else "twice"
        words = (
            f"Stopping: {_cause(self._state.stop)}. No new trials, those in flight finish: {', '.join(stages)}; "
            f"at most {duration(self._state.longest_left)} more. Press Ctrl-C {again} to end them now."
        )
        return remarks | {f"stop {again}": words}

    def _new_lines(self) -> Iterator[TrialKey]:
        """Trials finished since the last look."""
        self._look()
        while self._style != "terminal" and self._told < len(self._done):
            self._told += 1
            yield self._done[self._told - 1]

    def _look(self) -> None:
        """Note the trials of the plan that have finished since the last look."""
        finished = self._ledger.finished
        is_as_it_was = finished[max(0, self._looked - 1) : self._looked] == self._last
        if not is_as_it_was:  # something of it was reopened
            self._begin()
        for key in finished[self._looked :]:
            if key in self._plan:
                self._count(key)
        self._looked, self._last = len(finished), finished[-1:]

    def _count(self, key: TrialKey) -> None:
        trial = self._ledger.trials[key]
        self._done.append(key)
        self._failed += trial.outcome is Outcome.FAILED
        if trial.score is not None:
            self._scored += 1
            self._score += trial.score

    def _line(self, key: TrialKey) -> None:
        trial = self._ledger.trials[key]
        facts: dict[str, Any] = {
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
        if self._style == "json":
            console.say_json(facts)
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
        parts: list[RenderableType] = [bar, Text(self._stage_line(), style="dim")]
        for notice in self._ledger.latest_failures[-3:]:
            verb = "failed" if notice.is_final else "again"
            message = printable(" ".join(notice.message.split()))
            words = f"{verb}  {self._label(notice.trial)}  {notice.error}: {message}"
            parts.append(Text(words, style="red", no_wrap=True, overflow="ellipsis"))
        parts += [Text(printable(line), style="yellow") for line in self._remarks().values()]
        return Group(*parts)

    def _headline(self) -> str:
        done, running = len(self._done), self._count_running()
        parts = [
            f"{done}/{len(self._plan)} done",
            f"{running} running",
            f"{max(0, len(self._plan) - done - running)} queued",
            f"mean {number(self._score / self._scored if self._scored else None)}",
        ]
        if self._failed:
            parts.append(f"{self._failed} failed")
        return " · ".join(parts)

    def _stage_line(self) -> str:
        counts = [f"{stage} {self._ledger.stages[stage]}" for stage in Stage if self._ledger.stages[stage]]
        elapsed = time.monotonic() - self._began
        fresh = len(self._done) - self._done_before
        parts = [self._state.phase, " ".join(counts) or "waiting", duration(elapsed)]
        if fresh:
            left = len(self._plan) - len(self._done)
            parts += [f"{fresh / elapsed * 60:.1f}/min", f"about {duration(elapsed / fresh * left)} left"]
        if self._state.is_reduced:
            parts.append(f"the endpoint pushes back: {self._state.devboxes} devboxes")
        return " · ".join(parts)

    def _count_running(self) -> int:
        return sum(count for stage, count in self._ledger.stages.items() if stage is not Stage.RELEASE)

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
    """Why a sweep stops, for people."""
    return "Ctrl-C" if stop == "SIGINT" else stop
