"""Shared by the parts of the engine: the context of the sweep, the state of one attempt, and its result."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio

from orchestrator.agentkit.agent import Agent, Result
from orchestrator.core import records
from orchestrator.core.config import ArmConfig, SweepConfig
from orchestrator.core.errors import InternalError
from orchestrator.core.events import Sink
from orchestrator.core.ledger import Ledger
from orchestrator.core.stages import Stage
from orchestrator.endpoint.protocols import Endpoint
from orchestrator.engine.benchmark_runs import BenchmarkRuns
from orchestrator.engine.circuit_breaker import Breaker
from orchestrator.engine.concurrency import Limits
from orchestrator.engine.redact import NO_SECRETS, Redactor
from orchestrator.engine.remote_state import Remote
from orchestrator.engine.watchdog import Silence
from orchestrator.engine.workspace import DevboxWorkspace
from orchestrator.rundir.files import persist
from orchestrator.rundir.journal import now

T = TypeVar("T")

#: The agent's output, in the attempt's folder.
LOG: Final = "agent.log"
#: The version of the keys of a result.
RESULT_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """An agent with its model and settings, ready to work."""

    config: ArmConfig
    agent: Agent

    @property
    def name(self) -> str:
        return self.config.name

    def summary_of(self, scenario: records.ScenarioSummary) -> records.ScenarioSummary:
        """A scenario with the agent's time limit where it has none of its own."""
        return scenario if scenario.agent_timeout else replace(scenario, agent_timeout=self.agent.time_limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Everything an attempt needs that is not its own. `folder` is the run folder, `sweep` its id."""

    sweep: str
    benchmark: str
    config: SweepConfig
    endpoint: Endpoint
    sink: Sink
    ledger: Ledger
    limits: Limits
    folder: Path
    arms: Mapping[str, Arm]
    scenarios: Mapping[str, records.ScenarioSummary]
    #: None where scenarios are run by themselves.
    benchmark_runs: BenchmarkRuns | None
    remote: Remote
    #: A uniform random number in [0, 1), for jitter.
    dice: Callable[[], float]
    #: The number of times that each trial was deferred since this process began.
    delays: Counter[records.TrialKey] = field(default_factory=Counter)
    #: The trials that workers are trying.
    in_flight: set[records.TrialKey] = field(default_factory=set)
    #: What the devboxes of trials wait for before they boot, in words.
    preparing: dict[records.TrialKey, str] = field(default_factory=dict)
    breaker: Breaker = field(default_factory=Breaker)
    silence: Silence
    #: Masks the secrets of all arms: nothing that we write has them.
    redactor: Redactor = NO_SECRETS
    #: Seconds since 1970 by the clock of events.
    now: Callable[[], float] = now

    def has(self, key: records.TrialKey) -> bool:
        """Tell if a trial is still part of the sweep."""
        return key.scenario in self.scenarios and key.arm in self.arms and key.number <= self.config.trials

    def summary(self, key: records.TrialKey) -> records.ScenarioSummary:
        """A trial's scenario, with the time that its agent has."""
        return self.arms[key.arm].summary_of(self.scenarios[key.scenario])


@dataclass(slots=True, kw_only=True)
class AttemptState:
    """The state of one attempt, filled in stage by stage."""

    key: records.TrialKey
    number: int
    sweep: str
    arm: Arm
    summary: records.ScenarioSummary
    folder: Path
    redactor: Redactor = NO_SECRETS
    stage: Stage | None = None
    #: True once its score was given to the journal; until it is durable there, its devbox keeps it.
    has_score: bool = False
    #: True if an earlier process may have started the run without journaling its id.
    is_again: bool = False
    #: The limit of the stage that it is in.
    limit: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    scenario: records.Scenario | None = None
    benchmark_run: str | None = None
    run: records.ScenarioRun | None = None
    workspace: DevboxWorkspace | None = None
    result: Result | None = None
    #: The number of scorings that were asked for, by this process and earlier ones: each has a key of its own.
    scorings: int = 0
    #: The number of scorings that were the scorers' fault.
    faults: int = 0
    flags: list[records.Flag] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    #: The connections that its devbox made and was refused, by host; None where that is not known.
    network: dict[str, Mapping[str, int] | None] = field(default_factory=lambda: {"reached": None, "refused": None})
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    def idempotency_key(self, step: str) -> str:
        """The key of a `step`: the same for the same step of the same attempt, however often the process dies."""
        return sha256(f"{self.sweep} {self.key} {self.number} {step}".encode()).hexdigest()[:40]

    @property
    def metadata(self) -> dict[str, str]:
        """Tags of a run and its devbox on the endpoint."""
        return {"sweep": self.sweep, "trial": str(self.key), "attempt": str(self.number)}

    def spend(self, stage: Stage, seconds: float, waited: float) -> None:
        spent = self.stages.setdefault(stage.value, {"seconds": 0.0, "waited": 0.0})
        spent["seconds"] = round(spent["seconds"] + seconds, 3)
        spent["waited"] = round(spent["waited"] + waited, 3)

    async def keep(self, label: str, name: str, data: bytes) -> None:
        """Write a file of this attempt without secrets and list it under `label`, relative to the run folder."""
        path = self.folder / name
        data = self.redactor.mask(data)

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        await persist(write)
        self.list_file(label, path)

    def flag(self, flag: records.Flag) -> None:
        """Add a flag, once."""
        if flag not in self.flags:
            self.flags.append(flag)

    def list_file(self, label: str, path: Path) -> None:
        self.files[label] = str(path.relative_to(self.folder.parents[4]))


def attempt_folder(folder: Path, key: records.TrialKey, scenario: str, number: int) -> Path:
    """`trials/<scenario>/<arm>/<n>/attempt-<k>` below the run folder."""
    return (
        folder
        / "trials"
        / records.path_part(scenario)
        / records.path_part(key.arm)
        / str(key.number)
        / f"attempt-{number}"
    )


def given(value: T | None, what: str) -> T:
    """A part of the state that an earlier stage filled in. Raises InternalError if it did not."""
    if value is None:
        raise InternalError(f"{what} is needed before it is there")
    return value


def compose_result(
    ctx: Context, state: AttemptState, outcome: records.Outcome, failure: records.Failure | None
) -> Mapping[str, Any]:
    """Compose the line of results.jsonl: everything about a finished trial, readable without any other file.

    `started` is when the first of its attempts began, `finished` when the line was made, both by the journal's clock.
    `version` is the agent's, null where it has none; `exit_status` is null where its time was over, or it never ended;
    `exit_reason` is its own word for why it ended, null where it said none. `network` counts the connections that its
    devbox made, `reached`, and was not let out with, `refused`, by host; each is null where the endpoint does not
    count. `flags` are those of `records.Flag`.

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
        "schema": RESULT_SCHEMA,
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
        "score": run.score if run and outcome is records.Outcome.SCORED else None,
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
