"""Stops a sweep for failures that are no trial's fault: all other trials would fail in the same way.

It stops when too many installs of one agent, or boots of devboxes, fail in a row; when the endpoint grants no run for
too long, while no run of ours could make room; and when an agent crashes in the same way in every trial, and scores
nothing: a mistyped command looks like an honest 0. Pure: the caller brings the time, and the trials.
"""

from collections import Counter
from collections.abc import Iterable

from orchestrator.core import errors
from orchestrator.core.ledger import Trial
from orchestrator.core.printable import shortened
from orchestrator.core.records import Flag, Outcome
from orchestrator.core.stages import Stage

#: Failures that are no trial's fault, by stage.
_KINDS: dict[Stage, tuple[type[errors.SweepError], ...]] = {
    Stage.START: (errors.Throttled, errors.Unavailable, errors.Missing, errors.StageTimeout),
    Stage.BOOT: (errors.DevboxFailed, errors.AgentSetupFailed, errors.StageTimeout),
    Stage.PREPARE: (errors.AgentSetupFailed, errors.StageTimeout),
}


class Breaker:
    """Counts stages that passed and failures, and says when to stop."""

    def __init__(self, *, same_failures: int = 10, unreachable: float = 1800.0) -> None:
        self._same_failures = same_failures
        self._unreachable = unreachable
        self._in_a_row: Counter[tuple[Stage, str]] = Counter()
        #: The first time that the endpoint refused a run since it granted the last one.
        self._refused_at: float | None = None

    def passed(self, stage: Stage, arm: str) -> None:
        """Forget the failures of a stage, because it passed."""
        if stage is Stage.START:
            self._refused_at = None
        del self._in_a_row[_series(stage, arm)]

    def failed(
        self, error: errors.SweepError, stage: Stage | None, arm: str, *, now: float, is_busy: bool
    ) -> str | None:
        """Count a failure of an attempt; returns why the sweep should stop, or None.

        `now` is in seconds of any clock that does not go back; `is_busy` is true if other attempts hold devboxes.
        """
        if stage is None or not isinstance(error, _KINDS.get(stage, ())):
            return None
        if isinstance(error, errors.AgentSetupFailed):  # an endpoint may install before it says that a devbox runs
            stage = Stage.PREPARE
        words = shortened(error.message, 400)
        if stage is not Stage.START:
            self._in_a_row[_series(stage, arm)] += 1
            count = self._in_a_row[_series(stage, arm)]
            if count < self._same_failures:
                return None
            if stage is Stage.BOOT:
                return f"{count} devboxes in a row did not come up: {words}. Fix what gives the devboxes"
            return f"the agent of {arm} could not be installed {count} times in a row: {words}. Fix its install step"

        is_full = isinstance(error, errors.Throttled)
        if self._refused_at is None or (is_full and is_busy):
            self._refused_at = now
        minutes = (now - self._refused_at) / 60
        if 60 * minutes < self._unreachable:
            return None
        if is_full:
            return f"the endpoint has granted no run for {minutes:.0f} minutes: {words}. Have the quota raised"
        if isinstance(error, errors.Missing):
            return f"something that trials need has been missing for {minutes:.0f} minutes: {words}. Put it back"
        return f"the endpoint has not answered for {minutes:.0f} minutes: {words}. Check that it is up"

    def crashed(self, arm: str, finished: Iterable[Trial]) -> str | None:
        """Judge an arm after a crash of its agent; returns why the sweep should stop, or None.

        `finished` are the arm's trials so far, in any order. Those in which no agent ended do not count.
        """
        count, status = 0, None
        for trial in finished:
            if trial.outcome is not Outcome.SCORED and not {Flag.AGENT_CRASHED, Flag.AGENT_TIMED_OUT} & {*trial.flags}:
                continue
            has_failed = Flag.AGENT_CRASHED in trial.flags and (trial.score or 0) <= 0
            if not has_failed or trial.exit_status is None or (count and trial.exit_status != status):
                return None
            count, status = count + 1, trial.exit_status
        if count < self._same_failures:
            return None
        return f"the agent of {arm} crashed in each of its {count} trials so far, with exit status {status}"


def _series(stage: Stage, arm: str) -> tuple[Stage, str]:
    """The series that a failure is counted in: an agent that cannot be installed says nothing about others."""
    return stage, arm if stage is Stage.PREPARE else ""
