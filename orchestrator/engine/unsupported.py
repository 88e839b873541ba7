"""Trials that cannot run: each is finished with the reason, without an attempt, and nobody waits for it.

Not by a worker: there is no devbox to wait for, and a row of such failures says nothing about the others.
"""

from collections.abc import Iterable

from orchestrator.core.errors import Unsupported
from orchestrator.core.events import TrialFinished
from orchestrator.core.ledger import Trial
from orchestrator.core.records import Failure, Outcome, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.engine.context import Context, Work, attempt_folder
from orchestrator.engine.result import result_line


async def give_up(ctx: Context, owed: Iterable[TrialKey]) -> None:
    """Finish those of the owed trials whose scenarios cannot run; what is in flight takes its own course."""
    keys = [key for key in owed if ctx.summary(key).unsupported and ctx.ledger.under_way(key) is None]
    if keys:
        await ctx.sink.append(*(_finished(ctx, key) for key in keys))


def _finished(ctx: Context, key: TrialKey) -> TrialFinished:
    """The end of a trial; its number is that of the last attempt there was, 0 for none."""
    summary, last = ctx.summary(key), ctx.ledger.trials.get(key, Trial()).attempts
    work = Work(
        key=key,
        number=last,
        sweep=ctx.sweep,
        arm=ctx.arms[key.arm],
        summary=summary,
        folder=attempt_folder(ctx.folder, key, summary.name, last),
    )
    failure = Failure(error=Unsupported.__name__, message=summary.unsupported, stage=Stage.START.value)
    return TrialFinished(trial=str(key), attempt=last, result=result_line(ctx, work, Outcome.FAILED, failure))
