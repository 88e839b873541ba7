"""What a run starts with: the client's run profile, checked against what the scenario or benchmark requires.

A secret in a run profile is the name of an environment variable of the service's own process, one that its owner gave
out: the service has no account to keep secrets in, and its values must reach the devbox without passing through the
wire or the database. Whatever else is in that environment is nobody's but its owner's.
"""

import posixpath
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, TypeVar

import anyio

from orchestrator.service.devboxes.launch import check_launch
from orchestrator.service.devboxes.requests import check_variables, mounted_files, mounted_install
from orchestrator.service.environments.environments import Environments
from orchestrator.service.errors import Away, BadRequest, Conflict
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import HOME
from orchestrator.service.store import Document

T = TypeVar("T")

#: Seconds that a run waits for a folder of benchmarks to come back, and between two looks.
AWAY_PATIENCE: Final = 300.0
AWAY_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A RunProfile: `environment` NAME to value, `secrets` NAME to secret name, the rest as the wire has it."""

    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    launch_parameters: Mapping[str, Any] = field(default_factory=dict)
    mounts: tuple[Document, ...] = ()
    purpose: str | None = None

    def over(self, base: "Profile") -> "Profile":
        """This profile on top of another: what both name is as this one says."""
        return Profile(
            environment={**base.environment, **self.environment},
            secrets={**base.secrets, **self.secrets},
            launch_parameters={**base.launch_parameters, **self.launch_parameters},
            mounts=base.mounts + self.mounts,
            purpose=self.purpose or base.purpose,
        )

    def document(self) -> Document:
        """As a benchmark run keeps it for its scenario runs."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Profile":
        return cls(**{**document, "mounts": tuple(document["mounts"])})

    def view(self) -> Document:
        """The part that the view of a run shows; secrets by name only."""
        shown = {
            "environment_variables": dict(self.environment),
            "secrets_provided": dict(self.secrets),
            "purpose": self.purpose,
        }
        return {key: value for key, value in shown.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """What a client sends to start a run of a scenario or of a benchmark (`definition_id`)."""

    definition_id: str
    name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    profile: Profile = Profile()
    benchmark_run_id: str | None = None

    def view(self, profile: Profile) -> Document:
        """The keys of the run's view that follow from the request."""
        named = {"name": self.name} if self.name else {}
        return {"metadata": dict(self.metadata), **named, **profile.view()}


def check_startable(noun: str, definition: Document, profile: Profile) -> None:
    """Raise BadRequest for a profile that no devbox could have, an archived definition, and what is missing."""
    check_variables("runProfile", {**profile.environment, **dict.fromkeys(profile.secrets, "")})
    check_launch(profile.launch_parameters)
    mounted_files("runProfile.mounts", profile.mounts)
    mounted_install("runProfile.mounts", profile.mounts)
    what = f"{noun} {definition['id']} ({definition['name']})"
    if definition.get("status") == "archived":
        raise BadRequest(f"{what} is archived and cannot be run.")
    if definition.get("_unsupported"):
        raise BadRequest(f"{what} cannot be run here: {definition['_unsupported']}")
    problems = [
        f"{where} lacks {', '.join(missing)}"
        for where, missing in (
            ("runProfile.envVars", _missing(definition.get("required_environment_variables"), _variables(profile))),
            ("runProfile.secrets", _missing(definition.get("required_secret_names"), _secret_words(profile))),
        )
        if missing
    ]
    if problems:
        raise BadRequest(f"{what} cannot start: {' and '.join(problems)}.")


def _missing(required: Collection[str] | None, given: Collection[str]) -> list[str]:
    return [name for name in required or () if name not in given]


def _variables(profile: Profile) -> set[str]:
    return {*profile.environment, *profile.secrets}


def _secret_words(profile: Profile) -> set[str]:
    """A required secret may be named by its variable or by itself: the published documents say both."""
    return {*profile.secrets, *profile.secrets.values()}


def secret_values(profile: Profile, known: Mapping[str, str]) -> dict[str, str]:
    """NAME to value for each secret of a profile. Raises BadRequest naming those the service does not have."""
    unknown = sorted({name for name in profile.secrets.values() if name not in known})
    if unknown:
        raise BadRequest(
            f"runProfile.secrets: the service keeps no secret named {', '.join(unknown)}; start it with "
            f"`sweep serve --secret {unknown[0]}`, or send the value in runProfile.envVars."
        )
    return {variable: known[name] for variable, name in profile.secrets.items()}


def remembered(scenario: Document) -> Document:
    """What a run keeps of its scenario: for `check_unchanged`, and what a score of 0 without a scorer is made of."""
    functions = scenario["scoring_contract"]["scoring_function_parameters"]
    return {
        "_digest": scenario["metadata"]["digest"],
        "_parts": scenario["_parts"],
        "_functions": [function["name"] for function in functions],
    }


def check_unchanged(run: Document, scenario: Document) -> None:
    """Raise Conflict naming what is another than it was when the run began; runs of older versions do not know."""
    if run.get("_digest") in {None, scenario["metadata"]["digest"]}:
        return
    before, now = run["_parts"], scenario["_parts"]
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    raise Conflict(f"Scenario {scenario['name']} was changed since this run began ({', '.join(changed)}).")


async def outwait(attempt: Callable[[], Awaitable[T]]) -> T:
    """What `attempt` returns, made again while a folder of benchmarks is away. Raises Away if it stays so."""
    deadline = anyio.current_time() + AWAY_PATIENCE
    while True:
        try:
            return await attempt()
        except Away:
            if anyio.current_time() >= deadline:
                raise
        await anyio.sleep(AWAY_PAUSE)


async def environment_of(scenario: Document, environments: Environments) -> Prepared:
    """What a scenario's devbox starts from: its blueprint, its working directory. Raises NotFound, BoxStartFailed."""
    wanted = scenario.get("environment") or {}
    base = await environments.prepare(wanted["blueprint_id"]) if wanted.get("blueprint_id") else Prepared()
    directory = wanted.get("working_directory")
    return replace(base, working_directory=posixpath.join(HOME, directory)) if directory else base
