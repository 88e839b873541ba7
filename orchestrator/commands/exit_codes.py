"""Exit codes, and the line of a failure."""

from collections.abc import Collection, Sequence
from typing import Final

from orchestrator.core.errors import SweepError, Unauthorized, UsageError, leaf
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.records import Flag, Outcome, TrialKey

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_MISUSE: Final = 2
EXIT_INTERRUPTED: Final = 130
#: The first word of the reason in `sweep.ended`, if a signal asked for it; otherwise it is `stopped`.
INTERRUPTED: Final = "interrupted"
#: The end of that reason, if all selected trials were done.
NOT_SELECTED: Final = "the others were not selected"
ALL_FLAGGED: Final = "Every result of {} is flagged: look at them before you trust the mean. The exit code is 1."
#: A flag that casts no doubt if it stands alone: on an endpoint of others every result has it.
_USUAL: Final = frozenset({Flag.SCORED_LIVE})


def exit_code_of(error: BaseException) -> tuple[int, str]:
    """The exit code and the line of a failure. Raises it again if it is not one of ours."""
    cause = leaf(error)
    if isinstance(cause, BrokenPipeError):
        return EXIT_FAILED, ""  # the reader of our output is gone
    if not isinstance(cause, SweepError):
        raise error
    is_misuse = isinstance(cause, UsageError | Unauthorized)
    return (EXIT_MISUSE if is_misuse else EXIT_FAILED), cause.message


def all_flagged(plan: Plan, ledger: Ledger) -> Sequence[str]:
    """List the arms that have results, all of which are flagged."""
    doubts: dict[str, list[bool]] = {}
    for key in plan:
        if ledger.is_finished(key):
            doubts.setdefault(key.arm, []).append(bool({*ledger.trials[key].flags} - _USUAL))
    return [arm for arm, doubted in doubts.items() if all(doubted)]


def exit_code(trials: Collection[TrialKey], ledger: Ledger, *, doubtful: Collection[str] = (), is_stopped: bool) -> int:
    """The exit code of a sweep that ran these trials; `doubtful` are arms whose results are all flagged."""
    outcomes = [ledger.trials[key].outcome for key in trials if ledger.is_finished(key)]
    if len(outcomes) < len(trials):
        return EXIT_INTERRUPTED if is_stopped else EXIT_FAILED
    is_sound = all(outcome is Outcome.SCORED for outcome in outcomes) and not doubtful
    return EXIT_OK if is_sound else EXIT_FAILED
