"""Exit codes, and the line of a failure."""

from collections.abc import Collection, Sequence
from typing import Final

from orchestrator.core.config import BarsConfig
from orchestrator.core.errors import SweepError, Unauthorized, UsageError, leaf
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted
from orchestrator.core.records import Flag, Outcome, TrialKey
from orchestrator.view.report import summarise

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_MISUSE: Final = 2
EXIT_INTERRUPTED: Final = 130
#: The first word of the reason in `sweep.ended`, if a signal asked for it; otherwise it is `stopped`.
INTERRUPTED: Final = "interrupted"
#: The end of that reason, if all selected trials were done.
NOT_SELECTED: Final = "the others were not selected"
#: The end of that reason, if the program that the sweep ran in canceled it.
CANCELED: Final = "canceled by its program"
ALL_FLAGGED: Final = "Every result of {} is flagged: look at them before you trust the mean. The exit code is 1."
NOT_ACCEPTED: Final = "--accept {:g}% is missed: {} of {} have a score. The exit code is 1."
UNDER: Final = "--fail-under {:g} is missed: the mean of {} is {}. The exit code is 1."
_ROUNDING: Final = 1e-9
#: Flags that cast no doubt if they stand alone: every result may have them, on an endpoint of others or scored again.
_USUAL: Final = frozenset({Flag.SCORED_LIVE, Flag.RESCORED_IN_PART})


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


def verdict(
    trials: Collection[TrialKey], plan: Plan, ledger: Ledger, bars: BarsConfig, *, is_stopped: bool
) -> tuple[int, Sequence[str]]:
    """The exit code of a sweep that ran these trials of its plan, and sentences for reasons that its table leaves out.

    With `is_stopped`, a signal has stopped it.
    """
    doubts = [ALL_FLAGGED.format(arm) for arm in all_flagged(plan, ledger)]
    if is_stopped and not all(map(ledger.is_finished, trials)):
        return EXIT_INTERRUPTED, doubts
    scored = sum(ledger.is_finished(key) and ledger.trials[key].outcome is Outcome.SCORED for key in trials)
    is_accepted = scored >= bars.accept * len(trials) - _ROUNDING
    missed = []
    if not is_accepted and bars.accept < 1:
        missed.append(NOT_ACCEPTED.format(100 * bars.accept, scored, counted(len(trials), "trial")))
    if bars.fail_under is not None:
        for arm in plan.arms:
            mean = summarise(arm, ledger, plan).mean
            if mean is None or mean < bars.fail_under - _ROUNDING:
                missed.append(UNDER.format(bars.fail_under, arm, "unknown" if mean is None else f"{mean:.4g}"))
    return EXIT_OK if is_accepted and not doubts and not missed else EXIT_FAILED, [*doubts, *missed]
