"""Budgets of a sweep, decided from its ledger, so that spending before a resume counts.

A deadline is decided by the wall clock: it passes also while the machine sleeps.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import anyio

from orchestrator.core.config import ArmConfig, SweepConfig, moment
from orchestrator.core.errors import UsageError
from orchestrator.core.ledger import Ledger
from orchestrator.core.records import Outcome
from orchestrator.engine.shutdown import Stopping
from orchestrator.rundir.journal import now

#: Seconds between two checks; every start of a trial checks, too.
LOOK_EVERY_S: Final = 2.0
HOUR_S: Final = 3600.0


@dataclass(slots=True, kw_only=True)
class Budgets:
    """The budgets of a sweep. `deadline`, `wall` (the wall clock) and `now` (the journal's) are seconds since 1970.

    `config` and `deadline` may change while it runs.
    """

    config: SweepConfig
    ledger: Ledger
    deadline: float | None = None
    now: Callable[[], float] = now
    wall: Callable[[], float] = time.time

    def used_up(self) -> str | None:
        """Say which budget is used up, and how; None if none is."""
        config, ledger = self.config, self.ledger
        if self.deadline is not None and self.wall() >= self.deadline:
            return f"the deadline ({config.deadline}) has passed; give a later one to continue"
        if config.max_cost is not None and ledger.cost >= config.max_cost:
            return f"--max-cost {config.max_cost:g} is used up ({ledger.cost:.2f} USD); raise it to continue"
        if config.max_devbox_hours is not None:
            hours = ledger.devbox_seconds(self.now()) / HOUR_S
            if hours >= config.max_devbox_hours:
                return f"--max-devbox-hours {config.max_devbox_hours:g} is used up ({hours:.2f}); raise it to continue"
        failures = ledger.outcomes[Outcome.FAILED] - ledger.excused
        if config.max_failures is not None and failures >= config.max_failures:
            return f"--max-failures {config.max_failures} is reached; raise it to continue"
        return None


def deadline_of(config: SweepConfig) -> float | None:
    """Read the deadline, in seconds since 1970; None if there is none. Raises UsageError for one in the past."""
    if config.deadline is None:
        return None
    try:
        return moment(config.deadline, datetime.now())  # noqa: DTZ005 - people mean this machine's time
    except ValueError as error:
        raise UsageError(f"--deadline: {error}.") from None


def arm_used_up(arm: ArmConfig, ledger: Ledger) -> str | None:
    """Say how the arm's own budget is used up; None if it is not, or it has none."""
    spent = ledger.costs.get(arm.name, 0.0)
    if arm.cost is None or spent < arm.cost:
        return None
    return f"the cost of arm {arm.name}, {arm.cost:g}, is used up ({spent:.2f} USD); raise it to continue"


async def watch(stopping: Stopping) -> None:
    """Drain when a budget is used up. Runs until canceled."""
    while True:
        stopping.check()
        await anyio.sleep(LOOK_EVERY_S)
