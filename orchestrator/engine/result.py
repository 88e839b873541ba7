"""The line of results.jsonl: everything about a finished trial, readable without any other file."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from orchestrator.core.records import Failure, Outcome
from orchestrator.engine.context import AttemptState, Context

SCHEMA: Final = 1


def result_line(ctx: Context, state: AttemptState, outcome: Outcome, failure: Failure | None) -> Mapping[str, Any]:
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
    trial = ctx.ledger.trials.get(state.key)
    failures = trial.failures if trial else []
    now = ctx.now()
    run = state.run
    scoring = None
    if run is not None and run.score is not None:  # an endpoint that does not say where it scores does so live
        scoring = (run.judgement.mode or None) if run.judgement else "live"
    return {
        "schema": SCHEMA,
        "sweep": ctx.sweep,
        "benchmark": ctx.benchmark,
        "scenario": state.key.scenario,
        "scenario_name": state.summary.name,
        "arm": state.key.arm,
        "agent": state.arm.config.agent,
        "version": state.arm.agent.version,
        "model": state.arm.config.model,
        "trial": state.key.number,
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
        "flags": list(state.flags),
        "failure": failure.as_dict() if failure else None,
        "attempts": failures if failure else [*failures, {"attempt": state.number, "failure": None}],
        "stages": state.stages,
        "exit_status": state.result.exit_status if state.result else None,
        "exit_reason": (state.result.exit_reason or None) if state.result else None,
        "usage": dict(state.result.usage) if state.result else {},
        "network": state.network,
        "ids": {
            "benchmark_run": state.benchmark_run,
            "scenario_run": run.id if run else None,
            "devbox": run.devbox_id if run else None,
        },
        "files": state.files,
    }


def _moment(at: float) -> str:
    """Seconds since 1970 in ISO 8601, in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
