"""What the parts of the engine share: the sweep's context, and the working papers of one attempt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from orchestrator.agentkit.contract import Agent, Result
from orchestrator.config import ArmConfig, SweepConfig
from orchestrator.engine.benchmark_runs import BenchmarkRuns
from orchestrator.engine.limits import Limits
from orchestrator.engine.sink import Sink
from orchestrator.engine.workspace import DevboxWorkspace
from orchestrator.errors import InternalError
from orchestrator.ledger import Ledger
from orchestrator.model import Scenario, ScenarioRun, ScenarioSummary, TrialKey, path_part
from orchestrator.runloop.contract import Endpoint
from orchestrator.stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """An agent with its model and settings, ready to work."""

    config: ArmConfig
    agent: Agent

    @property
    def name(self) -> str:
        return self.config.name


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
    #: A uniform random number in [0, 1), for jitter.
    dice: Callable[[], float]

    def has(self, key: TrialKey) -> bool:
        """Whether the sweep still asks for a trial."""
        return key.scenario in self.scenarios and key.arm in self.arms and key.number <= self.config.trials


@dataclass(slots=True, kw_only=True)
class Work:
    """The working papers of one attempt: filled in as it walks through its stages."""

    key: TrialKey
    number: int
    sweep: str
    arm: Arm
    summary: ScenarioSummary
    folder: Path
    stage: Stage | None = None
    scenario: Scenario | None = None
    benchmark_run: str | None = None
    run: ScenarioRun | None = None
    workspace: DevboxWorkspace | None = None
    result: Result | None = None
    scorings: int = 0
    flags: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    def idempotency_key(self, step: str) -> str:
        """The same for the same step of the same attempt, however often the process dies."""
        return sha256(f"{self.sweep} {self.key} {self.number} {step}".encode()).hexdigest()[:40]

    @property
    def metadata(self) -> dict[str, str]:
        """What a run and its devbox are tagged with on the endpoint."""
        return {"sweep": self.sweep, "trial": str(self.key), "attempt": str(self.number)}

    def spend(self, stage: Stage, seconds: float, waited: float) -> None:
        spent = self.stages.setdefault(stage.value, {"seconds": 0.0, "waited": 0.0})
        spent["seconds"] = round(spent["seconds"] + seconds, 3)
        spent["waited"] = round(spent["waited"] + waited, 3)

    def keep(self, label: str, name: str, data: bytes) -> None:
        """Write a file of this attempt and list it under `label`, relative to the run folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.list_file(label, path)

    def list_file(self, label: str, path: Path) -> None:
        self.files[label] = str(path.relative_to(self.folder.parents[4]))


def attempt_folder(folder: Path, key: TrialKey, scenario: str, number: int) -> Path:
    """`trials/<scenario>/<arm>/<n>/attempt-<k>` below the run folder."""
    return folder / "trials" / path_part(scenario) / path_part(key.arm) / str(key.number) / f"attempt-{number}"


def given(value: Any, what: str) -> Any:
    """A working paper that an earlier stage filled in. Raises InternalError if it did not."""
    if value is None:
        raise InternalError(f"{what} is needed before it is there")
    return value
