"""The start of a run: the client's run profile, checked against what the scenario or benchmark requires.

A secret in a run profile is the name of an environment variable of the service's own process, one that its owner gave
out: the service has no account to keep secrets in, and its values must reach the devbox without passing through the
wire or the database. The rest of that environment is not handed out.
"""

import posixpath
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import msgspec
from msgspec import Struct

from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.definitions.scoring_plan import ScoringPlan, VariableNames
from orchestrator.service.definitions.self_extracting import filled
from orchestrator.service.definitions.steps import Steps
from orchestrator.service.devboxes import requests
from orchestrator.service.devboxes.requests import DevboxRequest
from orchestrator.service.devboxes.snapshots import Snapshots
from orchestrator.service.environments.environments import Environments
from orchestrator.service.errors import Away, BadRequest, Conflict
from orchestrator.service.records import RunProfile, ScenarioRunRecord
from orchestrator.service.sandbox.prepared import Preparation, Prepared
from orchestrator.service.sandbox.provider import HOME
from orchestrator.service.store import insist

T = TypeVar("T")

#: Time that a run waits for a folder of benchmarks to come back, and between two looks.
AWAY_TIMEOUT_S: Final = 300.0
AWAY_PAUSE_S: Final = 1.0


class Definition(Struct, frozen=True, kw_only=True):
    """A scenario or benchmark, as far as runs need it."""

    id: str
    name: str
    status: str = "active"
    required_environment_variables: Sequence[str] | None = None
    required_secret_names: Sequence[str] | None = None
    unsupported: str | None = msgspec.field(name="_unsupported", default=None)


class BenchmarkDefinition(Definition, frozen=True, kw_only=True):
    """A benchmark."""

    scenario_ids: Sequence[str] = msgspec.field(name="scenarioIds")


class EnvironmentDefinition(Struct, frozen=True, kw_only=True):
    """The start of a scenario's devbox."""

    blueprint_id: str | None = None
    snapshot_id: str | None = None
    working_directory: str | None = None
    launch_parameters: Mapping[str, Any] | None = None


class ScenarioDefinition(Definition, frozen=True, kw_only=True):
    """A scenario of one reading; `parts` are the digests of its parts by name, `scripts` those of custom scorers."""

    metadata: Mapping[str, Any]
    scoring_contract: Mapping[str, Any]
    environment: EnvironmentDefinition | None = None
    scorer_timeout_sec: float | None = None
    parts: Mapping[str, str] = msgspec.field(name="_parts")
    scripts: Mapping[str, str] = msgspec.field(name="_scorers")
    plan: ScoringPlan = msgspec.field(name="_scoring")
    several: Steps = msgspec.field(name="_steps", default=Steps())
    variables: VariableNames = msgspec.field(name="_variables", default=VariableNames())

    def in_step(self, number: int) -> "ScenarioDefinition":
        """Return the scenario as it is judged in one of its steps, or as a whole where it has none."""
        if not self.several.steps:
            return self
        step = self.several.steps[min(number, len(self.several.steps) - 1)]
        return msgspec.structs.replace(
            self, scoring_contract=step.contract, plan=step.plan, scorer_timeout_sec=step.scorer_timeout
        )

    def scorers_variables(self, given: Mapping[str, str]) -> Mapping[str, str]:
        """Return those of the `given` variables that scorers have beside their environment's."""
        names = self.variables
        asked = {*(self.required_environment_variables or ()), *names.optional, *names.templates}
        return {name: value for name, value in given.items() if name in asked} | filled(self.plan.templates, given)

    @property
    def digest(self) -> str | None:
        """The digest of all that decides scores."""
        return self.metadata.get("digest")


async def scenario_of(definitions: Definitions, scenario_id: str) -> ScenarioDefinition:
    """Read a scenario. Raises as `Definitions.scenario`."""
    return msgspec.convert(await definitions.scenario(scenario_id), ScenarioDefinition)


async def benchmark_of(definitions: Definitions, benchmark_id: str) -> BenchmarkDefinition:
    """Read a benchmark. Raises as `Definitions.benchmark`."""
    return msgspec.convert(await definitions.benchmark(benchmark_id), BenchmarkDefinition)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """A client's request to start a run of a scenario or of a benchmark (`definition_id`)."""

    definition_id: str
    name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    profile: RunProfile = field(default_factory=RunProfile)
    benchmark_run_id: str | None = None

    def fields(self, profile: RunProfile) -> dict[str, Any]:
        """Return the fields of the run's record that follow from the request; secrets by name only."""
        return {
            "metadata": self.metadata,
            "name": self.name or None,
            "environment_variables": profile.environment or None,
            "secrets_provided": profile.secrets or None,
            "purpose": profile.purpose or None,
        }


def check_startable(noun: str, definition: Definition, profile: RunProfile) -> None:
    """Raise BadRequest for a profile that no devbox could have, an archived definition, and what is missing."""
    requests.check_variables("runProfile", {**profile.environment, **dict.fromkeys(profile.secrets, "")})
    requests.check_launch(profile.launch_parameters)
    requests.mounted_files("runProfile.mounts", profile.mounts)
    requests.mounted_install("runProfile.mounts", profile.mounts)
    what = f"{noun} {definition.id} ({definition.name})"
    if definition.status == "archived":
        raise BadRequest(f"{what} is archived and cannot be run.")
    if definition.unsupported:
        raise BadRequest(f"{what} cannot be run here: {definition.unsupported}")

    def lacking(where: str, required: Collection[str] | None, given: Collection[str]) -> str:
        missing = [name for name in required or () if name not in given]
        return f"{where} lacks {', '.join(missing)}" if missing else ""

    variables = {*profile.environment, *profile.secrets}
    # A required secret may be named by its variable or by itself: the published documents say both.
    secrets = {*profile.secrets, *profile.secrets.values()}
    problems = [
        lacking("runProfile.envVars", definition.required_environment_variables, variables),
        lacking("runProfile.secrets", definition.required_secret_names, secrets),
    ]
    if any(problems):
        raise BadRequest(f"{what} cannot start: {' and '.join(filter(None, problems))}.")


def secret_values(profile: RunProfile, known: Mapping[str, str]) -> dict[str, str]:
    """Return NAME to value for each secret of a profile. Raises BadRequest naming those the service does not have."""
    unknown = sorted({name for name in profile.secrets.values() if name not in known})
    if unknown:
        raise BadRequest(
            f"runProfile.secrets: the service keeps no secret named {', '.join(unknown)}; start it with "
            f"`sweep serve --secret {unknown[0]}`, or send the value in runProfile.envVars."
        )
    return {variable: known[name] for variable, name in profile.secrets.items()}


def check_unchanged(run: ScenarioRunRecord, scenario: ScenarioDefinition) -> None:
    """Raise Conflict naming what is another than it was when the run began; runs of older versions do not know."""
    if run.digest in {None, scenario.digest}:
        return
    names = {**run.parts, **scenario.parts}
    changed = [name for name in names if run.parts.get(name) != scenario.parts.get(name)]
    raise Conflict(f"Scenario {scenario.name} was changed since this run began ({', '.join(changed)}).")


async def scenario_as_begun(definitions: Definitions, run: ScenarioRunRecord) -> ScenarioDefinition:
    """Read a run's scenario, as it is in the run's step, however long the disk refuses.

    Raises as `scenario_of`, and Conflict if it was changed.
    """
    scenario = await outwait(partial(insist, partial(scenario_of, definitions, run.scenario_id)))
    check_unchanged(run, scenario)
    return scenario.in_step(len(run.steps or ()))


async def outwait(attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat `attempt` while a folder of benchmarks is away, and return its result. Raises Away if it stays so."""
    deadline = anyio.current_time() + AWAY_TIMEOUT_S
    while True:
        try:
            return await attempt()
        except Away:
            if anyio.current_time() >= deadline:
                raise
        await anyio.sleep(AWAY_PAUSE_S)


def devbox_request(
    scenario: ScenarioDefinition, profile: RunProfile, *, run_id: str, name: str | None, labels: Mapping[str, str]
) -> DevboxRequest:
    """Make the request for the devbox of a scenario run."""
    environment = scenario.environment or EnvironmentDefinition()
    launch, names = environment.launch_parameters or {}, scenario.variables
    variables = {name: value for name, value in profile.environment.items() if name not in names.scorers_only}
    return DevboxRequest(
        name=name or scenario.name,
        metadata=labels,
        environment_variables={**variables, **filled(names.templates, profile.environment)},
        blueprint_id=environment.blueprint_id,
        snapshot_id=environment.snapshot_id,
        launch_parameters={**launch, **profile.launch_parameters},
        scenario_policy_id=launch.get("network_policy_id"),
        file_mounts=requests.mounted_files("runProfile.mounts", profile.mounts),
        install=requests.mounted_install("runProfile.mounts", profile.mounts),
        initiator_type="scenario",
        initiator_id=run_id,
    )


async def environment_of(
    scenario: ScenarioDefinition, environments: Environments, snapshots: Snapshots, preparation: Preparation
) -> Prepared:
    """Prepare a scenario's devbox: blueprint or snapshot, working directory, and what its scorers have instead.

    Raises NotFound, BoxStartFailed, and Away.
    """
    wanted = scenario.environment or EnvironmentDefinition()
    base = await environments.prepare(wanted.blueprint_id, preparation) if wanted.blueprint_id else Prepared()
    if wanted.snapshot_id:
        base = await snapshots.prepare(wanted.snapshot_id, preparation)
    if directory := wanted.working_directory:
        base = replace(base, working_directory=posixpath.join(HOME, directory))
    verifiers: list[Prepared | None] = []
    for number in range(len(scenario.several.steps) or 1):
        plan, own = scenario.in_step(number).plan, base
        if plan.environment is not None:
            own = await environments.prepare(plan.environment, preparation)
        elif plan.reach is not None:
            own = replace(own, network=plan.reach.network, hosts=plan.reach.hosts)
        if plan.user is not None:
            own = replace(own, verifier_user=plan.user)
        verifiers.append(None if own is base else own)
    return replace(base, verifiers=tuple(verifiers)) if any(verifiers) else base
