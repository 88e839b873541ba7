"""The records that all floors share. Frozen: a change is a new value. Durations are seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from re import sub
from typing import Any, Self

from orchestrator.core.protocol import HOME, RUN_RESULT, AdditionalContext, Described, RunState


class Outcome(StrEnum):
    """The end of a trial."""

    SCORED = "scored"
    """Its scorers gave a score."""
    FAILED = "failed"
    """It was given up; the failure says whose fault it was. Not a score of 0."""


class Flag(Described):
    """A remark beside a score or a failure."""

    AGENT_CRASHED = "agent_crashed", "the agent ended with an exit status other than 0"
    AGENT_TIMED_OUT = "agent_timed_out", "the agent used up its time"
    DEVBOX_BROKEN_BY_AGENT = "devbox_broken_by_agent", "the agent broke its devbox, or what scores it: the score is 0"
    SCORED_LIVE = "scored_live", "scorers ran in the agent's own devbox, beside what it left running"
    SYSTEM_CHANGED = (
        "system_changed",
        "the agent changed a program, module or start-up file that a scorer may load: see `changes.txt`",
    )
    LOG_INCOMPLETE = "log_incomplete", "some of the agent's output never arrived"
    LOG_TRUNCATED = "log_truncated", "the agent printed too much: the middle of its output is left out"
    NO_PATCH = "no_patch", "there is no `patch.diff`: `LEFT-OUT.txt` says why"
    GATHER_INCOMPLETE = "gather_incomplete", "a part of the agent's files could not be collected: `sweep.log` says why"
    GATHER_TRUNCATED = "gather_truncated", "something is left out: `LEFT-OUT.txt` says what and why"
    SECRETS_MASKED = "secrets_masked", "a secret is masked in the patch or in an artifact, which is not as it was"
    RESCORED_IN_PART = (
        "rescored_in_part",
        "scored again without what the agent left running, or changed outside the working directory: see `changes.txt`",
    )
    RESCORE_FAILED = "rescore_failed", "could not be scored again: the result is the one before"
    TRAJECTORY_UNREAD = "trajectory_unread", "the trajectory could not be converted"


def flags_table() -> str:
    """The flags as a table in Markdown, for people."""
    rows = [("flag", "says"), ("---", "---"), *((f"`{flag}`", flag.meaning) for flag in Flag)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@dataclass(frozen=True, slots=True, order=True)
class TrialKey:
    """A trial: the unit that ends with exactly one result. Numbers start at 1."""

    scenario: str
    arm: str
    number: int

    def __str__(self) -> str:
        return f"{self.scenario}/{self.arm}/{self.number}"

    @classmethod
    @lru_cache(1024)  # each event of a trial names it
    def parse(cls, text: str) -> Self:
        scenario, rest = text.split("/", 1)
        arm, number = rest.rsplit("/", 1)
        return cls(scenario, arm, int(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """The name of a step of a scenario, and its time limits; None where it says none."""

    name: str
    agent_timeout: float | None = None
    scorer_timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioSummary:
    """A scenario as the plan needs it. `digest` changes when its content does; empty where unknown.

    `network` is what the scenario lets its devbox reach, `internet` meaning every public host. `unsupported` is the
    reason why the endpoint cannot run it, empty if it can; `notes` are wishes that are not met, and runs without. Two
    with one `environment` start from the same; it is empty where that is not known. `verifier_environments` are those
    of its scorers where they have some of their own. `context` is what its agent gets beside the problem statement.
    `steps` has the limits of each step, of a scenario of several; the timeouts are those of the first step then.
    `variables` are the names of those it takes from whoever runs it, of which it cannot do without the `required`.
    """

    id: str
    name: str
    digest: str = ""
    agent_timeout: float | None = None
    scorer_timeout: float | None = None
    network: tuple[str, ...] = ()
    unsupported: str = ""
    notes: tuple[str, ...] = ()
    environment: str = ""
    verifier_environments: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    context: AdditionalContext = field(default_factory=AdditionalContext)
    steps: tuple[StepLimits, ...] = ()

    @property
    def environments(self) -> tuple[str, ...]:
        """All that have to be there before it can run."""
        return tuple(filter(None, (self.environment, *self.verifier_environments)))

    def in_step(self, number: int) -> "ScenarioSummary":
        """Return the scenario with the limits of one of its steps, or as it is where it has none."""
        if not self.steps:
            return self
        limits = self.steps[number]
        return replace(self, agent_timeout=limits.agent_timeout, scorer_timeout=limits.scorer_timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How far an environment is: waiting, preparing, ready or failed. `message` says what goes on, or why it failed."""

    environment: str
    state: str
    message: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomEstimate:
    """The room that images want and have, in bytes; of `images` so many are `here`, and some of `unknown` size.

    `wanted` is for all together, as far as they are known.
    """

    images: int = 0
    here: int = 0
    unknown: int = 0
    wanted: int = 0
    room: int = 0

    @property
    def is_short(self) -> bool:
        """Tell if images must make room for each other, as it seems."""
        known = self.images - self.unknown
        return (self.unknown > 0 and not known) or self.wanted * self.images > self.room * known


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file or folder that a scenario wants kept: its path in the devbox, and patterns of what in it is not.

    A relative path starts at the working directory.
    """

    source: str
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioStep:
    """A step of a scenario of several, with the texts that its agent gets, and the artifacts that it is to leave."""

    name: str
    prompt: str
    reference_output: str | None = None
    artifacts: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario with the texts that its agent gets: of the first of its `steps`, if it has several.

    `digest` and `context` are as in the summary.
    """

    id: str
    name: str
    prompt: str
    digest: str = ""
    reference_output: str | None = None
    working_directory: str | None = None
    artifacts: tuple[Artifact, ...] = ()
    context: AdditionalContext = field(default_factory=AdditionalContext)
    steps: tuple[ScenarioStep, ...] = ()

    def in_step(self, number: int) -> "Scenario":
        """Return the scenario with the texts and artifacts of one of its steps, or as it is where it has none."""
        if not self.steps:
            return self
        step = self.steps[number]
        return replace(self, prompt=step.prompt, reference_output=step.reference_output, artifacts=step.artifacts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark on the endpoint."""

    id: str
    name: str
    scenario_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerResult:
    """The result of one scoring function; `state` is complete or error, `rewards` the named numbers of its tests."""

    name: str
    score: float
    state: str
    output: str = ""
    rewards: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_faulty(self) -> bool:
        return self.state == "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The place of a run's scorers, and the devbox as its agent left it, as far as an endpoint of ours says.

    `mode` is separate, shared or live; `processes_left` are processes by name that still ran when the agent had ended;
    `system_changed` are changed programs and start-up files. `broken` says how the agent broke its devbox, empty if it
    did not. `was_live` means that some scorers ran beside the agent's processes, though others gave the score.
    """

    mode: str
    was_live: bool = False
    processes_left: Mapping[str, int] = field(default_factory=dict)
    system_changed: tuple[str, ...] = ()
    broken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """A devbox without the agent's processes, whose files nothing can change any more; of endpoints of ours.

    `exit_status` is that of the agent's execution, if it was asked for. Paths as commands in the devbox see them:
    `scratch` is a folder for their files, `evidence` has the changes, `prepared` the tree that the devbox began with.
    """

    exit_status: int | None
    scratch: str
    evidence: str
    prepared: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The result of one step of a scenario run; `score` is None for a step without tests."""

    name: str
    score: float | None = None
    scorers: tuple[ScorerResult, ...] = ()
    judgement: Judgement | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioRun:
    """One run of a scenario on the endpoint. `score` and `scorers` are None and empty until it is scored.

    `judgement` is None where the endpoint does not say. `rewards` are the named numbers that tests wrote, whichever is
    the score. `steps` are those that were scored, of a scenario of several.
    """

    id: str
    scenario_id: str
    devbox_id: str
    state: str
    score: float | None = None
    scorers: tuple[ScorerResult, ...] = ()
    judgement: Judgement | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[StepResult, ...] = ()
    benchmark_run_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def in_step(self, number: int) -> "ScenarioRun":
        """Return the run as one of its steps was scored; as it is, where it was not, or where it has none."""
        if number >= len(self.steps):
            return self
        step = self.steps[number]
        return replace(
            self,
            state=RunState.SCORED,
            score=step.score,
            scorers=step.scorers,
            judgement=step.judgement,
            rewards=step.rewards,
        )

    @property
    def has_result(self) -> bool:
        """True if the result only needs to be read."""
        return self.state in RUN_RESULT and self.score is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRun:
    """One run of a benchmark on the endpoint."""

    id: str
    benchmark_id: str
    state: str
    name: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Devbox:
    """A devbox; `failure` is the reason why it is not running, for people.

    `home` and `working_directory` are paths as commands in it see them; the latter is None where it does not say.
    `installed` are the keys of the installs that it has, `failed_install` is the key of the one that failed its boot.
    `reached` and `refused` count the connections to each host that its rules allowed and refused; None where the
    endpoint does not count. `preparing` says what it waits for before it boots, such as an image; mostly nothing.
    """

    id: str
    status: str
    failure: str = ""
    home: str = HOME
    working_directory: str | None = None
    installed: frozenset[str] = frozenset()
    failed_install: str | None = None
    has_failed_environment: bool = False
    reached: Mapping[str, int] | None = None
    refused: Mapping[str, int] | None = None
    preparing: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """Software that a devbox needs: a shell script that puts all of it below the folder `prefix`.

    `prefix` is absolute in the devbox, and the script's $SWEEP_AGENT_PREFIX. Two with one `key` have the same result in
    the same environment, so an endpoint may run the script once and show its files, read-only, to every devbox.
    `hosts` are those that the script may reach beside the package indexes of the endpoint.
    """

    key: str
    script: str
    prefix: str
    environment: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Requirements of a run's devbox, in addition to its scenario's.

    `hosts` are the host names that it may reach beside those of the scenario, as network policies spell them;
    `is_closed` means that it reaches nothing, `is_open` everything. `secrets` map a variable to the name of a secret
    that the endpoint keeps.
    """

    hosts: tuple[str, ...] = ()
    is_closed: bool = False
    is_open: bool = False
    install: Install | None = None
    secrets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A command in a devbox."""

    id: str
    devbox_id: str
    is_completed: bool
    exit_status: int | None = None
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The failure of an attempt: the error's class, its message, and the stage in which it happened."""

    error: str
    message: str
    stage: str

    def as_dict(self) -> dict[str, Any]:
        return {"class": self.error, "message": self.message, "stage": self.stage}


def path_part(name: str) -> str:
    """A name as one part of a path: readable, safe on every file system, and different for different names."""
    slug = sub(r"[^a-zA-Z0-9._-]+", "-", name).strip("-.")[:60] or "x"
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{slug}-{digest[:8]}"
