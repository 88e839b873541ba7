"""The line of results.jsonl: everything about a finished trial, readable without any other file."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from orchestrator.core.records import Failure, Outcome
from orchestrator.engine.context import Context, Work

SCHEMA: Final = 1


def result_line(ctx: Context, work: Work, outcome: Outcome, failure: Failure | None) -> Mapping[str, Any]:
    """Compose the line.

    `started` is when the first of its attempts began, `finished` when the line was made, both by the journal's clock.
    `version` is the agent's, null where it has none; `exit_status` is null where its time was over, or it never ended;
    `exit_reason` is its own word for why it ended, null where it said none. `network` counts the connections that its
    devbox made, `reached`, and was not let out with, `refused`, by host; each is null where the endpoint does not
    count. `flags` are those of `model.Flag`.

    `scoring` is where the scorers ran (separate, shared, live), null where none did. `processes_left` counts by name
    what still ran when the agent had ended. `rewards` are the named numbers that tests wrote, whichever is the score.

    `score` is null unless the outcome is `scored`; `stages` has seconds at work and seconds waiting for a turn, of the
    last attempt; `attempts` has every attempt that ended without a score, with its failure; `files` are relative to the
    run folder; `ids` are the endpoint's.
    """
    trial = ctx.ledger.trials.get(work.key)
    failures = trial.failures if trial else []
    now = ctx.now()
    run = work.run
    scoring = None
    if run is not None and run.score is not None:  # an endpoint that does not say where it scores does so live
        scoring = (run.judgement.mode or None) if run.judgement else "live"
    return {
        "schema": SCHEMA,
        "sweep": ctx.sweep,
        "benchmark": ctx.benchmark,
        "scenario": work.key.scenario,
        "scenario_name": work.summary.name,
        "arm": work.key.arm,
        "agent": work.arm.config.agent,
        "version": work.arm.agent.version,
        "model": work.arm.config.model,
        "trial": work.key.number,
        "started": _moment(trial.began if trial and trial.began is not None else now),
        "finished": _moment(now),
        "outcome": outcome,
        "score": run.score if run and outcome is Outcome.SCORED else None,
        "scorers": [
            {"name": scorer.name, "score": scorer.score, "state": scorer.state}
            for scorer in (run.scorers if run else ())
        ],
        "rewards": {name: value for scorer in (run.scorers if run else ()) for name, value in scorer.rewards.items()},
        "scoring": scoring,
        "processes_left": dict(run.judgement.processes_left) if run and run.judgement else {},
        "flags": list(work.flags),
        "failure": failure.as_dict() if failure else None,
        "attempts": failures if failure else [*failures, {"attempt": work.number, "failure": None}],
        "stages": work.stages,
        "exit_status": work.result.exit_status if work.result else None,
        "exit_reason": (work.result.exit_reason or None) if work.result else None,
        "usage": dict(work.result.usage) if work.result else {},
        "network": work.network,
        "ids": {
            "benchmark_run": work.benchmark_run,
            "scenario_run": run.id if run else None,
            "devbox": run.devbox_id if run else None,
        },
        "files": work.files,
    }


def _moment(at: float) -> str:
    """Seconds since 1970 in ISO 8601, in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
