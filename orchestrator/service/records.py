"""The records that the service keeps: one class for each kind of row.

Its secret: the spelling in the file. A field is stored under its own name, and one that is never shown on the wire
under a name with an underscore before it. A field that was left at its default is not stored. So a row of an older
version, which lacks a field, and a row of a newer one, which has more, both open.

Why records and not the rows' JSON: a key that is misspelt is found by the type checker, not by a run at night.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from msgspec import UNSET, Struct, UnsetType, field, to_builtins

from orchestrator.core.protocol import DEVBOX_DEAD, BenchmarkRunState, DevboxStatus, Isolation, RewardStrategy, RunState


class ExecutionStatus(StrEnum):
    """Status of a command; one in a named shell is queued until its turn comes."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"


class SnapshotStatus(StrEnum):
    """Status of a snapshot, as published."""

    IN_PROGRESS = "in_progress"
    COMPLETE = "complete"
    ERROR = "error"
    DELETED = "deleted"


class FunctionState(StrEnum):
    """State of one scoring function: it gave a score, or there is none."""

    COMPLETE = "complete"
    ERROR = "error"


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything that is kept or shown; a field that was left at its default is left out."""


def view(thing: Record | Mapping[str, Any]) -> dict[str, Any]:
    """Return a record or document as the wire shows it: without the keys of ours, which open with an underscore."""
    document = to_builtins(thing) if isinstance(thing, Record) else thing
    return {key: value for key, value in document.items() if not key.startswith("_")}


class Transition(Record, frozen=True, kw_only=True):
    """One status of a devbox, and when it came, in milliseconds since 1970."""

    status: DevboxStatus
    transition_time_ms: int
    failure_reason: str | None = None


class DevboxRecord(Record, frozen=True, kw_only=True):
    """A devbox. `end_time_ms` is published as null while there is none, unlike what else may be missing.

    It `has_one_user` if those of its image do not exist here; else this is missing. `network` says what it reaches, in
    the words of `devboxes.network.described`; `reached` and `refused` count what its way out let through and what not,
    by host. `preparing` says what it waits for before it boots, such as an image.
    """

    id: str
    status: DevboxStatus
    create_time_ms: int
    end_time_ms: int | None
    capabilities: Sequence[str]
    launch_parameters: Mapping[str, Any]
    metadata: Mapping[str, str]
    state_transitions: Sequence[Transition]
    initiator_type: str
    initiator_id: str | None = None
    name: str | None = None
    blueprint_id: str | None = None
    snapshot_id: str | None = None
    isolation: Isolation | None = None
    enforced_limits: Sequence[str] | None = None
    network: str | None = None
    has_one_user: bool | None = None
    home: str | None = None
    working_directory: str | None = None
    installed: Sequence[str] | None = None
    failed_install: str | None = None
    has_failed_environment: bool = False
    reached: Mapping[str, int] | None = None
    refused: Mapping[str, int] | None = None
    preparing: str | None = None
    shutdown_reason: str | None = None
    failure_reason: str | None = None
    failure_message: str | None = None
    broken_by_agent: bool = False
    end_message: str | None = field(name="_failure", default=None)
    """What is known of its end, for people; a shutdown has no `failure_message`."""

    @property
    def is_ended(self) -> bool:
        """It is over, whatever the reason."""
        return self.status in DEVBOX_DEAD

    @property
    def end_reason(self) -> str | None:
        """The published reason of its end."""
        return self.shutdown_reason or self.failure_reason


class ExecutionRecord(Record, frozen=True, kw_only=True):
    """A command of a client. `note` is for people, where the exit status does not say it all."""

    id: str
    devbox_id: str
    status: ExecutionStatus
    command: str = field(name="_command")
    created_ms: int = field(name="_created_ms")
    ended_ms: int | None = field(name="_ended_ms", default=None)
    shell_name: str | None = None
    exit_status: int | None = None
    note: str | None = field(name="_note", default=None)
    is_stdout_cut: bool = field(name="_stdout_cut", default=False)
    is_stderr_cut: bool = field(name="_stderr_cut", default=False)


class EgressRules(Record, frozen=True, kw_only=True):
    """The rules of a network policy, in the published shape; without `allow_all` only the hosts."""

    allow_all: bool
    allow_agent_gateway: bool
    allow_devbox_to_devbox: bool
    allow_mcp_gateway: bool
    allow_runloop_mirrors: bool
    allowed_cidrs: Sequence[str]
    allowed_hostnames: Sequence[str]


class NetworkPolicyRecord(Record, frozen=True, kw_only=True):
    """A network policy that a client made."""

    id: str
    name: str
    description: str | None = None
    egress: EgressRules
    create_time_ms: int
    update_time_ms: int


class ObjectRecord(Record, frozen=True, kw_only=True):
    """A file that a client uploads. `key` is what the addresses of its content have instead of the token."""

    id: str
    name: str
    content_type: str
    create_time_ms: int
    state: str
    metadata: Mapping[str, str] | None = None
    size_bytes: int | None = None
    delete_after_time_ms: int | None = None
    key: str = field(name="_key")


class BlueprintRecord(Record, frozen=True, kw_only=True):
    """A blueprint that a client made; `parameters` are as sent.

    `dockerfile` is the text that is built, of its base and of itself, and `context` names the folder that it copies
    from. Without one it is this machine's own system, where each devbox gets the `files` and runs the `commands`.
    `arguments` and `launch` have those of its base too.
    """

    id: str
    name: str
    create_time_ms: int
    state: str
    status: str
    parameters: Mapping[str, Any]
    base_blueprint_id: str | None = None
    build_finish_time_ms: int | None = None
    failure_reason: str | None = None
    metadata: Mapping[str, str] | None = None
    dockerfile: str | None = field(name="_dockerfile", default=None)
    arguments: Mapping[str, str] = field(name="_arguments", default_factory=dict)
    context: str | None = field(name="_context", default=None)
    files: Mapping[str, str] = field(name="_files", default_factory=dict)
    commands: Sequence[str] = field(name="_commands", default=())
    launch: Mapping[str, Any] = field(name="_launch", default_factory=dict)


class SnapshotRecord(Record, frozen=True, kw_only=True):
    """A snapshot of the disk of a devbox.

    `layers` are the folders that it is made of, those of the snapshots below it first. With `is_image` each lies over
    the image of `source_blueprint_id`; else there is one, with all folders of a devbox on this machine's own system.
    """

    id: str
    create_time_ms: int
    metadata: Mapping[str, str]
    source_devbox_id: str
    name: str | None = None
    commit_message: str | None = None
    size_bytes: int | None = None
    source_blueprint_id: str | None = None
    status: SnapshotStatus = field(name="_status")
    error: str | None = field(name="_error", default=None)
    layers: Sequence[str] = field(name="_layers", default=())
    is_image: bool = field(name="_is_image", default=False)
    working_directory: str | None = field(name="_working_directory", default=None)


class RunProfile(Record, frozen=True, kw_only=True):
    """A run profile: `environment` NAME to value, `secrets` NAME to secret name, the rest as on the wire."""

    environment: Mapping[str, str] = {}
    secrets: Mapping[str, str] = {}
    launch_parameters: Mapping[str, Any] = {}
    mounts: Sequence[Mapping[str, Any]] = ()
    purpose: str | None = None

    def over(self, base: "RunProfile") -> "RunProfile":
        """Return this profile on top of another: what both name is as this one says."""
        return RunProfile(
            environment={**base.environment, **self.environment},
            secrets={**base.secrets, **self.secrets},
            launch_parameters={**base.launch_parameters, **self.launch_parameters},
            mounts=(*base.mounts, *self.mounts),
            purpose=self.purpose or base.purpose,
        )


class FunctionResult(Record, frozen=True, kw_only=True):
    """The result of one scoring function.

    `rewards` are the named numbers that its score is one of, `python` the version that ran it, `broken` says how what
    is judged broke the box that judged it. An error that `is_own` is surely the scorer's; that is not kept.
    """

    scoring_function_name: str
    score: float
    output: str
    state: FunctionState
    seconds: float | None = None
    python: str | None = None
    rewards: Mapping[str, float] | None = None
    broken: str | None = None
    is_own: bool = field(name="_is_own", default=False)


class ContractResult(Record, frozen=True, kw_only=True):
    """The result of a scoring contract: the weighed score, from 0 to 1, and that of each function."""

    score: float
    scoring_function_results: Sequence[FunctionResult]

    def faults(self) -> list[str]:
        """Return the names of the functions that could not be scored, whatever the total says."""
        return [each.scoring_function_name for each in self.scoring_function_results if each.state == "error"]


class ScoringRecord(Record, frozen=True, kw_only=True):
    """The state of a run's devbox after its agent, and where its scorers run.

    `system_changed` is null where the devbox was not noted before the agent began.
    """

    mode: str | None = None
    processes_left: Mapping[str, int] | None = None
    system_changed: Sequence[str] | UnsetType | None = UNSET
    was_live: bool | None = None
    broken: str | None = None


class StepTerms(Record, frozen=True, kw_only=True):
    """A step of a scenario as a run of it began: no step follows it with a reward below its `min_reward`."""

    name: str
    min_reward: Mapping[str, float] = {}


class StepRecord(Record, frozen=True, kw_only=True):
    """The end of one step of several; without a result, it had no tests."""

    name: str
    scoring_contract_result: ContractResult | None = None
    scoring: ScoringRecord | None = None

    @property
    def rewards(self) -> Mapping[str, float] | None:
        """The rewards that its tests wrote, by name; None where it was not judged.

        A scorer in a box without Python may say no more than the score.
        """
        result = self.scoring_contract_result
        if result is None:
            return None
        rewards = {
            name: value for each in result.scoring_function_results for name, value in (each.rewards or {}).items()
        }
        return rewards or {"reward": result.score}


class RunRecord(Record, frozen=True, kw_only=True):
    """Fields of scenario runs and of benchmark runs."""

    id: str
    start_time_ms: int
    metadata: Mapping[str, str]
    name: str | None = None
    environment_variables: Mapping[str, str] | None = None
    secrets_provided: Mapping[str, str] | None = None
    purpose: str | None = None
    duration_ms: int | None = None


class ScenarioRunRecord(RunRecord, frozen=True, kw_only=True):
    """A scenario run.

    `digest`, `parts` and `functions` are of its scenario as it was at the start: the digest of all that decides scores,
    those of its parts by name, and the names of its scoring functions. `faults` counts the scorings that failed.

    Of a scenario of several steps, `planned` are all, `steps` those that have ended. An agent may work in the one under
    way once that `is_step_begun`. Their rewards become the `rewards` of the whole by the `strategy`.
    """

    scenario_id: str
    devbox_id: str
    state: RunState
    benchmark_run_id: str | None = None
    scoring_contract_result: ContractResult | None = None
    failure_reason: str | None = None
    scoring: ScoringRecord | None = None
    steps: Sequence[StepRecord] | None = None
    rewards: Mapping[str, float] | None = None
    planned: Sequence[StepTerms] = field(name="_planned", default=())
    strategy: RewardStrategy = field(name="_strategy", default=RewardStrategy.MEAN)
    is_step_begun: bool = field(name="_is_step_begun", default=False)
    digest: str | None = field(name="_digest", default=None)
    parts: Mapping[str, str] = field(name="_parts", default_factory=dict)
    functions: Sequence[str] = field(name="_functions", default=())
    scoring_mode: str | None = field(name="_scoring_mode", default=None)
    is_live_over: bool = field(name="_is_live_over", default=False)
    faults: int = field(name="_faults", default=0)


class BenchmarkRunRecord(RunRecord, frozen=True, kw_only=True):
    """A benchmark run; its scenario ids are those of the benchmark at the start."""

    benchmark_id: str
    state: BenchmarkRunState
    score: float | None = None
    scenario_ids: Sequence[str] = field(name="_scenario_ids", default=())
    profile: RunProfile = field(name="_profile", default_factory=RunProfile)


class Created(Record, frozen=True, kw_only=True):
    """The answer kept for a request that is repeated, where the thing itself is read again."""

    id: str
