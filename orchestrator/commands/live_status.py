"""The live status of a sweep that runs here, read from the engine's parts as they come to be."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio

from orchestrator.core.printable import counted
from orchestrator.core.records import TrialKey
from orchestrator.core.stages import Stage
from orchestrator.engine import concurrency, lifecycle, shutdown
from orchestrator.engine.budgets import Budgets
from orchestrator.engine.context import Context
from orchestrator.engine.scheduler import Scheduler
from orchestrator.engine.watchdog import Watchdog
from orchestrator.rundir.journal import Journal, now
from orchestrator.view.overview import BUDGETS, budgets, pause_notice

#: Images that devboxes wait for, of which the picture tells.
IMAGES: Final = 3


@dataclass(slots=True, kw_only=True)
class LiveStatus:
    """Implements `view.progress.Status`."""

    stopping: shutdown.Stopping
    budgets: Budgets
    limits: concurrency.Limits
    watchdog: Watchdog
    #: The step before or after the trials run; "" while they do.
    step: str = "starting"
    journal: Journal | None = None
    ctx: Context | None = None
    scheduler: Scheduler | None = None
    #: Set once progress is shown.
    opened: anyio.Event = field(default_factory=anyio.Event)

    @property
    def phase(self) -> str:
        if self.step:
            return self.step
        if self.stopping.is_canceled:
            return "releasing"
        if self.ctx is not None and self.ctx.ledger.paused is not None:
            return "paused"
        if self.in_flight or (self.scheduler is not None and self.scheduler.is_feeding):
            return "draining" if self.stopping.is_draining else "running"
        return "reconciling"

    @property
    def troubles(self) -> Sequence[str]:
        found = []
        if self.ctx is not None and (notice := pause_notice(self.ctx.ledger, self.ctx.folder)) is not None:
            found.append(notice)
        if self.journal is not None and self.journal.trouble is not None:
            found.append(f"New work waits: {self.journal.trouble}")
        if self.scheduler is not None and self.scheduler.is_feeding and self.scheduler.is_throttled:
            found.append("New work waits: the endpoint grants no run for now.")
        if self.ctx is not None and self.ctx.preparing:
            waiting = Counter(self.ctx.preparing.values()).most_common(IMAGES)
            found += [f"{counted(count, 'devbox')} waiting for an image: {words}." for words, count in waiting]
        silent = self.ctx.silence.seconds if self.ctx is not None else 0.0
        if silent:
            found.append(f"The endpoint has not answered for {silent:.0f} s; time limits wait for it.")
        if self.watchdog.notice is not None:
            found.append(f"{self.watchdog.notice[0].upper()}{self.watchdog.notice[1:]}.")
        return found

    @property
    def stop(self) -> str | None:
        return self.stopping.reason if self.stopping.fault is None else None

    @property
    def is_asked_to_stop(self) -> bool:
        return self.stopping.is_by_signal

    @property
    def is_ending(self) -> bool:
        return self.stopping.is_canceled

    @property
    def in_flight(self) -> Mapping[Stage, int]:
        if self.ctx is None:
            return {}
        trials = [self.ctx.ledger.trials.get(key) for key in self.ctx.in_flight]
        at = Counter((trial and trial.attempt and trial.attempt.stage) or Stage.START for trial in trials)
        return {stage: at[stage] for stage in Stage if at[stage]}

    @property
    def trials(self) -> Iterable[TrialKey]:
        ctx = self.ctx
        return () if ctx is None else (key for key in ctx.ledger.held if key in ctx.in_flight)

    @property
    def longest_left(self) -> float:
        if self.ctx is None:
            return 0.0
        return min(lifecycle.longest_left(self.ctx, now()), max(0.0, self.stopping.ends_at - anyio.current_time()))

    @property
    def devboxes(self) -> int:
        return self.limits.devboxes

    @property
    def is_reduced(self) -> bool:
        return self.limits.is_reduced

    @property
    def spent(self) -> Sequence[str]:
        config = {name: getattr(self.budgets.config, name) for name in BUDGETS}
        return budgets(config, self.budgets.ledger, now(), ends_at=self.budgets.deadline)
