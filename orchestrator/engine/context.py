"""Shared by the parts of the engine: the context of the sweep, and the state of one attempt."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

from orchestrator.agentkit.agent import Agent, Result
from orchestrator.core.config import ArmConfig, SweepConfig
from orchestrator.core.errors import InternalError
from orchestrator.core.events import Sink
from orchestrator.core.ledger import Ledger
from orchestrator.core.records import Flag, Scenario, ScenarioRun, ScenarioSummary, TrialKey, path_part
from orchestrator.core.stages import Stage
from orchestrator.endpoint.protocols import Endpoint
from orchestrator.engine.benchmark_runs import BenchmarkRuns
from orchestrator.engine.circuit_breaker import Breaker
from orchestrator.engine.concurrency import Limits
from orchestrator.engine.redact import NO_SECRETS, Redactor
from orchestrator.engine.remote_state import Remote
from orchestrator.engine.retry_io import persist
from orchestrator.engine.silence import Silence
from orchestrator.engine.workspace import DevboxWorkspace
from orchestrator.rundir.journal import now

T = TypeVar("T")

#: What the agent prints, in the attempt's folder.
LOG: Final = "agent.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """An agent with its model and settings, ready to work."""

    config: ArmConfig
    agent: Agent

    @property
    def name(self) -> str:
        return self.config.name

    def summary_of(self, scenario: ScenarioSummary) -> ScenarioSummary:
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
    scenarios: Mapping[str, ScenarioSummary]
    #: None where scenarios are run by themselves.
    benchmark_runs: BenchmarkRuns | None
    remote: Remote
    #: A uniform random number in [0, 1), for jitter.
    dice: Callable[[], float]
    #: How often each trial was put off since this process began.
    delays: Counter[TrialKey] = field(default_factory=Counter)
    #: The trials that workers are at.
    in_flight: set[TrialKey] = field(default_factory=set)
    breaker: Breaker = field(default_factory=Breaker)
    silence: Silence
    #: Knows the secrets of all arms: nothing that we write has them.
    redactor: Redactor = NO_SECRETS
    #: Seconds since 1970 by the clock of events.
    now: Callable[[], float] = now

    def has(self, key: TrialKey) -> bool:
        """Tell whether the sweep still asks for a trial."""
        return key.scenario in self.scenarios and key.arm in self.arms and key.number <= self.config.trials

    def summary(self, key: TrialKey) -> ScenarioSummary:
        """A trial's scenario, with the time that its agent has."""
        return self.arms[key.arm].summary_of(self.scenarios[key.scenario])


@dataclass(slots=True, kw_only=True)
class AttemptState:
    """The state of one attempt, filled in stage by stage."""

    key: TrialKey
    number: int
    sweep: str
    arm: Arm
    summary: ScenarioSummary
    folder: Path
    redactor: Redactor = NO_SECRETS
    stage: Stage | None = None
    #: Whether its score was given to the journal; until it is durable there, its devbox keeps it.
    has_score: bool = False
    #: Whether the run may have been asked for before, and its id was not heard.
    is_again: bool = False
    scenario: Scenario | None = None
    benchmark_run: str | None = None
    run: ScenarioRun | None = None
    workspace: DevboxWorkspace | None = None
    result: Result | None = None
    scorings: int = 0
    flags: list[Flag] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    #: The connections that its devbox made and was refused, by host; None where that is not known.
    network: dict[str, Mapping[str, int] | None] = field(default_factory=lambda: {"reached": None, "refused": None})
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    def idempotency_key(self, step: str) -> str:
        """The same for the same step of the same attempt, however often the process dies."""
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

    def flag(self, flag: Flag) -> None:
        """Say something about the attempt that belongs beside its score, once."""
        if flag not in self.flags:
            self.flags.append(flag)

    def list_file(self, label: str, path: Path) -> None:
        self.files[label] = str(path.relative_to(self.folder.parents[4]))


def attempt_folder(folder: Path, key: TrialKey, scenario: str, number: int) -> Path:
    """`trials/<scenario>/<arm>/<n>/attempt-<k>` below the run folder."""
    return folder / "trials" / path_part(scenario) / path_part(key.arm) / str(key.number) / f"attempt-{number}"


def given(value: T | None, what: str) -> T:
    """A part of the state that an earlier stage filled in. Raises InternalError if it did not."""
    if value is None:
        raise InternalError(f"{what} is needed before it is there")
    return value
