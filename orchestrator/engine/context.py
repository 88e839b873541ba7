"""Shared by the parts of the engine: the context of the sweep, the state of one attempt, and its result."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio

from orchestrator.agentkit.agent import Agent, Result
from orchestrator.core import records
from orchestrator.core.config import ArmConfig, SweepConfig
from orchestrator.core.errors import ByHand, InternalError
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
from orchestrator.rundir.files import AGENT_LOG, PATIENCE_S, persist
from orchestrator.rundir.journal import now

T = TypeVar("T")

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
        usual = self.agent.time_limit
        return replace(
            scenario,
            agent_timeout=scenario.agent_timeout or usual,
            steps=tuple(replace(step, agent_timeout=step.agent_timeout or usual) for step in scenario.steps),
        )


@dataclass(slots=True, kw_only=True)
class InFlight:
    """A trial that a worker tries: `scope` is all of its work, and `ended_by` the order that ended it, if one did."""

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ended_by: ByHand | None = None

    def end(self, why: ByHand) -> None:
        self.ended_by = why
        self.scope.cancel()


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
    in_flight: dict[records.TrialKey, "InFlight"] = field(default_factory=dict)
    #: What the devboxes of trials wait for before they boot, in words.
    preparing: dict[records.TrialKey, str] = field(default_factory=dict)
    breaker: Breaker = field(default_factory=Breaker)
    silence: Silence
    #: Masks the secrets of all arms: nothing that we write has them.
    redactor: Redactor = NO_SECRETS
    #: Variables that scenarios take from whoever runs them.
    variables: Mapping[str, str] = field(default_factory=dict)
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
    """The state of one attempt, filled in stage by stage.

    Of a scenario of several steps, what is not said to be the whole attempt's is that of the step under way, and
    `steps` are the results of those before it.
    """

    key: records.TrialKey
    number: int
    sweep: str
    arm: Arm
    #: The scenario, and the folder of the whole attempt.
    whole: records.ScenarioSummary
    base: Path
    #: The result whose work is scored again; None where an agent works.
    kept: Mapping[str, Any] | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
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

    @property
    def summary(self) -> records.ScenarioSummary:
        """The scenario, with the limits of the step under way."""
        return self.whole.in_step(len(self.steps))

    @property
    def folder(self) -> Path:
        """The folder of the attempt, or of its step under way: `steps/<name>` in that."""
        if not self.whole.steps:
            return self.base
        return self.base / "steps" / self.step_name

    @property
    def step_name(self) -> str:
        """The name of the step under way, of a scenario of several."""
        return self.whole.steps[len(self.steps)].name

    @property
    def judged(self) -> records.ScenarioRun:
        """The run, as the step under way was scored. Raises InternalError where there is none yet."""
        return given(self.run, "the run").in_step(len(self.steps))

    def idempotency_key(self, call: str) -> str:
        """The key of a `call`: the same for the same one of the same attempt, however often the process dies."""
        step = f"step {len(self.steps)} " if self.steps else ""
        return sha256(f"{self.sweep} {self.key} {self.number} {step}{call}".encode()).hexdigest()[:40]

    async def lay_out(self) -> None:
        """Make the folder, and in it the agent's log."""

        def make() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / AGENT_LOG).touch()

        await persist(make, patience=PATIENCE_S)

    def next_step(self) -> dict[str, Any]:
        """Turn to the next step; return the result of the last one, as the line of results.jsonl has it."""
        ended = {"name": self.step_name, **step_result(self)}
        self.steps.append(ended)
        self.result, self.scorings, self.faults = None, 0, 0
        self.flags, self.files, self.stages = [], {}, {}
        return ended

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
        self.files[label] = str(path.relative_to(self.base.parents[4]))


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

    `steps` are those that were begun, of a scenario of several: each has its name, and of the keys above those that
    differ from step to step. `flags`, `stages` and `usage` are of all of them then; what else has one value for each is
    that of the last one. `rescored` has `score` and `finished` of the agent's own run, where the work that was kept was
    scored again.
    """
    trial = ctx.ledger.trials.get(state.key)
    failures = trial.failures if trial else []
    now = ctx.now()
    run = state.run
    last = step_result(state)
    each_step = [*state.steps, last]
    return {
        "schema": RESULT_SCHEMA,
        "sweep": ctx.sweep,
        "benchmark": ctx.benchmark,
        "scenario": state.key.scenario,
        "scenario_name": state.summary.name,
        "arm": state.key.arm,
        "agent": state.arm.config.agent,
        "version": (state.result.version if state.result else "") or state.arm.agent.version,
        "model": state.arm.config.model,
        "trial": state.key.number,
        "started": _moment(trial.began if trial and trial.began is not None else now),
        "finished": _moment(now),
        "outcome": outcome,
        "score": run.score if run and outcome is records.Outcome.SCORED else None,
        "scorers": _scorers(run),
        "rewards": dict(run.rewards) if run else {},
        "scoring": last["scoring"],
        "processes_left": last["processes_left"],
        "flags": list(dict.fromkeys(flag for each in each_step for flag in each["flags"])),
        "failure": failure.as_dict() if failure else None,
        "attempts": failures if failure else [*failures, {"attempt": state.number, "failure": None}],
        "stages": {
            stage: _sums([each["stages"].get(stage, {}) for each in each_step])
            for stage in dict.fromkeys(stage for each in each_step for stage in each["stages"])
        },
        "exit_status": last["exit_status"],
        "exit_reason": last["exit_reason"],
        "usage": _sums([each["usage"] for each in each_step]),
        "network": state.network,
        "ids": {
            "benchmark_run": state.benchmark_run,
            "scenario_run": run.id if run else None,
            "devbox": run.devbox_id if run else None,
        },
        "files": last["files"],
        "steps": [*state.steps, {"name": state.step_name, **last}] if state.whole.steps and run else [],
        "rescored": None,
    }


def step_result(state: AttemptState) -> dict[str, Any]:
    """Compose what the line of results.jsonl has of one step; of a scenario without steps this is all of it."""
    run, result, scoring = state.judged if state.run else None, state.result, None
    if run is not None and run.score is not None:  # an endpoint that does not say where it scores does so live
        scoring = (run.judgement.mode or None) if run.judgement else "live"
    return {
        "score": run.score if run else None,
        "scorers": _scorers(run),
        "rewards": dict(run.rewards) if run else {},
        "scoring": scoring,
        "processes_left": dict(run.judgement.processes_left) if run and run.judgement else {},
        "flags": list(state.flags),
        "stages": state.stages,
        "exit_status": result.exit_status if result else None,
        "exit_reason": (result.exit_reason or None) if result else None,
        "usage": dict(result.usage) if result else {},
        "files": state.files,
    }


def _scorers(run: records.ScenarioRun | None) -> list[dict[str, Any]]:
    scorers = run.scorers if run else ()
    return [{"name": scorer.name, "score": scorer.score, "state": scorer.state} for scorer in scorers]


def _sums(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up numbers by name; of anything else the last one counts."""
    total: dict[str, Any] = {}
    for name, value in (item for values in each for item in values.items()):
        before = total.get(name)
        are_numbers = isinstance(before, int | float) and isinstance(value, int | float)
        total[name] = round(before + value, 6) if are_numbers else value
    return total


def _moment(at: float) -> str:
    """Seconds since 1970 in ISO 8601, in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
