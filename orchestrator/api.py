"""Sweeps in a program or a notebook: `orchestrator.load` reads one from its folder, `orchestrator.run` runs one.

import orchestrator

sweep = orchestrator.load("runs/my-sweep")
sweep.rows.as_pandas().groupby("arm").score.mean()
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import anyio

from orchestrator.commands import run_sweep
from orchestrator.common import logging_setup
from orchestrator.core.config import RUNS, SweepConfig
from orchestrator.core.errors import SweepHalted, UsageError, leaf
from orchestrator.core.ledger import Trial
from orchestrator.core.records import TrialKey
from orchestrator.results import LoadedResults
from orchestrator.rundir.journal import now
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.view.formats import LINES
from orchestrator.view.metrics import metrics_of_recorded, prometheus_text
from orchestrator.view.report import ArmSummary, report


class LoadedSweep(RecordedSweep):
    """A sweep as its folder records it: `name`, `state`, `folder`, `manifest`, and what has come of it so far.

    `catch_up()` takes in what was written since.
    """

    @property
    def trials(self) -> Mapping[TrialKey, Trial]:
        """Every trial of the plan; `outcome` is None while it has no result."""
        return {key: self.ledger.trials.get(key) or Trial() for key in self.plan}

    @property
    def rows(self) -> LoadedResults:
        """The lines of results.jsonl, in the order in which trials finished: dicts, or a table by `as_pandas()`."""
        return LoadedResults(self.results.values())

    @property
    def arms(self) -> Sequence[ArmSummary]:
        """The table that a sweep ends with: mean, interval, failures and cost of each arm."""
        return report(self.ledger, self.plan, self.folder).arms

    @property
    def metrics(self) -> str:
        """The numbers that `sweep docs monitoring` lists, in the text format of Prometheus."""
        return prometheus_text(metrics_of_recorded(self, now()))


def load(sweep: str | os.PathLike[str]) -> LoadedSweep:
    """Read a sweep from its run folder, such as "runs/my-sweep", whether it runs, ended, or comes from elsewhere.

    Raises UsageError if it is no run folder, JournalError naming the place of damage.
    """
    return LoadedSweep(Path(sweep))


_RUNNING: Final = threading.Lock()


@contextmanager
def _alone() -> Iterator[None]:
    """Raise UsageError while another sweep runs in this process: logging, and what masks it, are the process's."""
    if not _RUNNING.acquire(blocking=False):
        raise UsageError("Another sweep runs in this process: run this one after it, or in a process of its own.")
    try:
        yield
    finally:
        _RUNNING.release()


async def run(
    config: SweepConfig,
    *,
    runs: str | os.PathLike[str] = RUNS,
    variables: Mapping[str, str] | None = None,
    show: bool = False,
) -> LoadedSweep:
    """Run a sweep to its end, or to a stop, and read it. As `sweep run`, it goes on with an unfinished sweep.

    `runs` is the folder of all sweeps. `variables` are those of an --env-file: for the agents, and stored nowhere.
    `show` prints a line for each trial, and the table. No signal is taken over: to stop, cancel the task, which ends
    the agents and releases the devboxes.

    One sweep runs in a process at a time. Raises UsageError before anything is spent, and the failure that stopped the
    sweep where that was none of a trial.
    """
    folders: list[Path] = []
    with _alone(), logging_setup.kept():
        try:
            await run_sweep.run(
                config,
                runs=Path(runs),
                output=LINES if show else None,
                given=variables or {},
                begun=folders.append,
                signals=(),
            )
        except ExceptionGroup as group:
            raise leaf(group) from None
    if not folders:
        raise SweepHalted("The sweep stopped before its folder was open: a budget is used up")
    return await anyio.to_thread.run_sync(load, folders[0])
