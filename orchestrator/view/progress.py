"""The progress of a sweep, pulled from the ledger a few times a second, never pushed by the engine.

It is shown in an output format: as a screen that is redrawn, as lines without a terminal, or as records for programs.
"""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import structlog

from orchestrator.core.errors import leaf
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted, shortened
from orchestrator.core.records import Outcome
from orchestrator.view import console
from orchestrator.view.formats import Format
from orchestrator.view.overview import label, look_of, next_commands, trial_record
from orchestrator.view.picture import Counts, Picture, Status
from orchestrator.view.report import MESSAGE_WIDTH, as_record, as_table, duration, number, report
from orchestrator.view.tables import Look, Words, print_lines

#: Seconds between two pictures, between two looks for what has changed, and between two at the logs.
REDRAW_S: Final = 1.0
LOOK_S: Final = 0.5
LOGS_S: Final = 1.0
#: Time between two summaries among lines.
SUMMARY_S: Final = 30.0
#: How long a phase may last before it is named; before the first picture, lines wait longer for a slow start.
SLOW_S: Final = 2.0
SLOW_START_S: Final = 10.0
#: Phases that need no name, because trials finish or a stop is explained.
TRIALS_RUN: Final = frozenset({"running", "paused", "draining", "releasing"})
#: Columns of the table without a terminal to measure.
TABLE_WIDTH: Final = 200
#: Columns of a line without one.
PLAIN_WIDTH: Final = 80


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
        await anyio.sleep(LOOK_S)


@asynccontextmanager
async def shown(subject: str, doing: Callable[[], str], output: Format) -> AsyncIterator[None]:
    """Show what is being done with a subject, on a terminal."""

    async def draw() -> None:
        while True:
            line = shortened(f"{subject}  {doing()}", console.Page(PLAIN_WIDTH).width - 1)
            console.show([line])
            await anyio.sleep(LOOK_S)

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
        self._counts = Counts(ledger, plan)
        self._picture = Picture(ledger=ledger, plan=plan, state=state, folder=folder, counts=self._counts)
        self._slow = SlowPhases(state)
        self._remarked: set[str] = set()
        owed = len(plan) - len(self._counts.done)
        self.say(f"{opening}: {counted(len(plan), 'trial')}, {owed} to do.")

    def say(self, *messages: str) -> None:
        """Print messages for people, each on a line of its own."""
        for message in messages:
            console.say(message, to_stderr=self._output.is_for_programs)

    async def show(self) -> None:
        """Draw until canceled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tell)
            if self._output.is_redrawn:
                tasks.start_soon(self._draw)
                tasks.start_soon(self._read_logs)

    async def _tell(self) -> None:
        """Print a line for each trial that finishes, and what has no place in a picture."""
        due = anyio.current_time() + SUMMARY_S
        while True:
            self._tell_trials()
            if not self._output.is_redrawn:
                if (phase := self._slow.due()) is not None:
                    self.say(phase)
                remarks = self._remarks()
                self.say(*(words for about, words in remarks.items() if about not in self._remarked))
                self._remarked = set(remarks)
                if not self._output.is_for_programs and anyio.current_time() >= due:
                    self.say(self._counts.headline)
                    due += SUMMARY_S
            await anyio.sleep(LOOK_S)

    async def _draw(self) -> None:
        drawn_for, due = None, anyio.current_time()
        while True:
            window, now = self._page.window, anyio.current_time()
            if window != drawn_for or now >= due:
                try:
                    console.show(self._picture.lines(window, [*self._remarks().values()]))
                except Exception:  # noqa: BLE001 - no mistake in a picture ends a sweep
                    structlog.get_logger().exception("picture.broken")
                    console.show(())
                    return
                drawn_for, due = window, now + REDRAW_S
            await anyio.sleep(LOOK_S)

    async def _read_logs(self) -> None:
        """Look at the logs that are drawn; a disk that does not answer delays this alone."""
        while True:
            await anyio.to_thread.run_sync(self._picture.read_logs, abandon_on_cancel=True)
            await anyio.sleep(LOGS_S)

    def finish(self) -> None:
        """Print the end: the last trials, the report, and the paths of the files."""
        console.show(())
        self._tell_trials()
        whole = report(self._ledger, self._plan, self._folder)
        left = len(self._plan) - len(self._counts.done)
        stop = self._state.stop if left else None
        if self._output.is_for_programs:
            stopped = {"stopped": stop} if stop else {}
            console.print_record({"event": "sweep"} | as_record(whole) | stopped, self._output)
        else:
            self._page.print(as_table(whole))
            self.say(f"Next: {', '.join(next_commands(self._ledger, self._plan, self._folder))}")
        if stop:
            owed = f"{left} of {counted(len(self._plan), 'trial')} {'is' if left == 1 else 'are'} left"
            self.say(f"Stopped: {_cause(stop)}. {owed}: run the sweep again for {'it' if left == 1 else 'them'}.")

    def _remarks(self) -> dict[str, str]:
        """Return lines about delays or a stop. The key of a line stays the same while only its numbers change."""
        remarks = {re.sub(r"\d[\d:.]*", "", trouble): trouble for trouble in self._state.troubles}
        if self._state.stop is None:
            return remarks
        stages = [f"{count} {stage.doing}" for stage, count in self._state.in_flight.items()]
        if not stages:
            return remarks
        if self._state.is_ending:
            return remarks | {"end": "Ending the agents and releasing the devboxes."}
        again = "again" if self._state.is_asked_to_stop else "twice"
        words = (
            f"Stopping: {_cause(self._state.stop)}. No new trials start, running trials finish: {', '.join(stages)}; "
            f"at most {duration(self._state.longest_left)} more. Press Ctrl-C {again} to end them now."
        )
        return remarks | {f"stop {again}": words}

    def _tell_trials(self) -> None:
        """Print a line for each trial that has finished since the last time."""
        lines = list[Words]()
        for number_of, key in self._counts.take():
            trial = self._ledger.trials[key]
            if self._output.is_for_programs:
                console.print_record({"event": "trial"} | trial_record(key, trial, self._plan), self._output)
                continue
            ending = number(trial.score)
            if trial.outcome is not Outcome.SCORED:
                ending = f"{trial.outcome}: {trial.failure}: {shortened(trial.message, MESSAGE_WIDTH)}"
            flags = f" ({', '.join(trial.flags)})" if trial.flags else ""
            place = f"[{number_of}/{len(self._plan)}]"
            words = f"{place} {label(key, self._plan)}  {ending}{flags}  {duration(trial.seconds)}"
            lines.append((words, look_of(trial) if self._output.is_redrawn else Look.PLAIN))
        if lines:
            print_lines(lines)


class HiddenProgress(Progress):
    """Shows nothing of a sweep; what it would say goes to the sweep's log."""

    def say(self, *messages: str) -> None:
        for message in messages:
            structlog.get_logger().info("sweep.notice", words=message)

    async def show(self) -> None:
        """Draw nothing."""

    def finish(self) -> None:
        """Print nothing."""


def _cause(stop: str) -> str:
    """The reason for a stop, in words for people."""
    return "Ctrl-C" if stop == "SIGINT" else stop
