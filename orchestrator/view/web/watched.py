"""Sweeps that are looked at: each is read once for all who look, no more often than is worth it.

Nobody is told anything: who looks asks again, and gets the picture that is there, or a new one if it has become old.
So a sweep that nobody looks at costs nothing, and one that a hundred tabs look at is read once.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
from markupsafe import Markup

from orchestrator.core.errors import SweepError, UsageError
from orchestrator.rundir.files import JOURNAL, MANIFEST
from orchestrator.rundir.recorded import RecordedSweep, SweepState, reading
from orchestrator.view.web.sweep_view import Grid, Totals, grid_of, read_totals, sweep_parts

T = TypeVar("T")

#: Sweeps that are kept in memory.
KEPT: Final = 24
#: The least time between two readings, and how much longer than a reading it is.
PAUSE_S: Final = 1.0
TIMES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPicture:
    """The page of a sweep at one time: HTML by the name of its part, and the grid. No two have the same number."""

    number: str
    state: SweepState
    parts: Mapping[str, Markup]
    grid: Grid


class WatchedSweep:
    """One sweep, and its newest picture."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = anyio.Lock()
        self._sweep: RecordedSweep | None = None
        #: The file that its journal is: `sweep repair` makes another.
        self._journal: int | None = None
        self._picture: SweepPicture | None = None
        #: Whether something has happened since the picture.
        self._has_news = True
        self._next_at = 0.0

    async def ask(self, what: Callable[..., T], *arguments: object) -> T:
        """Call `what` with the sweep as its folder is now, in a thread, while nothing else reads it.

        Raises UsageError, JournalError, and what `what` raises.
        """

        def call() -> T:
            with reading(self._folder):
                return what(self._catch_up(), *arguments)

        async with self._lock:
            return await anyio.to_thread.run_sync(call)

    async def picture(self) -> SweepPicture:
        """Draw the sweep, unless there is a picture that is new enough. Raises as `ask`."""
        async with self._lock:
            if self._picture is None or time.monotonic() >= self._next_at:
                began = time.monotonic()
                self._picture = await anyio.to_thread.run_sync(self._draw)
                ended = time.monotonic()
                self._next_at = ended + max(PAUSE_S, TIMES * (ended - began))
            return self._picture

    def _catch_up(self) -> RecordedSweep:
        """Take in what was written since; all again, if it is another journal or sweep, or could not be read."""
        sweep, self._sweep = self._sweep, None
        before, self._journal = self._journal, _inode(self._folder / JOURNAL)
        if sweep is not None and self._journal == before:
            known = sweep.manifest.sweep
            with suppress(SweepError):
                self._has_news |= sweep.catch_up()
                self._sweep = sweep if sweep.manifest.sweep == known else None
        if self._sweep is None:
            self._sweep, self._has_news = RecordedSweep(self._folder), True
        return self._sweep

    def _draw(self) -> SweepPicture:
        before = self._picture
        with reading(self._folder):
            sweep = self._catch_up()
            state = sweep.state  # a sweep ends a moment after its last event
            if before is not None and before.state is state is not SweepState.RUNNING and not self._has_news:
                return before
            number, parts = f"{time.time_ns():x}", sweep_parts(sweep, time.time())
            picture = SweepPicture(number=number, state=state, parts=parts, grid=grid_of(sweep))
            self._has_news = False
            return picture


class WatchedSweeps:
    """The sweeps of a runs folder, by name."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._kept: OrderedDict[str, WatchedSweep] = OrderedDict()
        #: What is known of each sweep, and the version of its journal then.
        self._totals: dict[str, tuple[object, Totals]] = {}

    def known(self, name: str) -> Totals | None:
        """The sum of a sweep as it was the last time; None before the first."""
        found = self._totals.get(name)
        return found and found[1]

    async def totals(self, name: str) -> Totals:
        """Sum up a sweep, which is not read again as long as nothing happens in it. Raises UsageError, JournalError."""
        version = await anyio.to_thread.run_sync(version_of, self.runs / name)
        before = self._totals.get(name)
        if before is None or before[0] != version or before[1].about.state is SweepState.RUNNING:
            self._totals[name] = before = version, await self.find(name).ask(read_totals, time.time())
        return before[1]

    def folder(self, name: str) -> Path:
        """The folder of the sweep of this name. Raises UsageError if there is none."""
        with suppress(OSError):  # such as a name that is too long
            if name not in {"", ".", ".."} and "/" not in name and (self.runs / name / MANIFEST).is_file():
                return self.runs / name
        raise UsageError(f"There is no sweep {name!r} in {self.runs}.")

    def find(self, name: str) -> WatchedSweep:
        """The sweep of this name. Raises UsageError if there is none."""
        folder = self.folder(name)
        found = self._kept.setdefault(name, WatchedSweep(folder))
        self._kept.move_to_end(name)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found


def _inode(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return path.stat().st_ino
    return None


def version_of(folder: Path) -> object:
    """A value that changes when a sweep does."""
    found = []
    for name in (JOURNAL, MANIFEST):
        with suppress(FileNotFoundError):
            stat = (folder / name).stat()
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found


def changes(grid: Grid, before: Grid | None) -> Mapping[str, Any] | None:
    """What a page that shows `before` needs to show this grid: all of it, its changed rows and cells, or None."""
    if before is grid:
        return None
    if before is None or (before.arms, before.trials, before.ids) != (grid.arms, grid.trials, grid.ids):
        return grid.as_dict()
    rows = {at: row for at, (row, old) in enumerate(zip(grid.rows, before.rows, strict=True)) if row != old}
    cells = {at: cell for at, (cell, old) in enumerate(zip(grid.cells, before.cells, strict=True)) if cell != old}
    return {"changed_rows": rows, "changed_cells": cells} if rows or cells else None
