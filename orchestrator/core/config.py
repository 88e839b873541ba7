"""Every setting of a sweep: its type, its default with the reason for it, and its words on the command line.

A setting has the same name in sweep.toml and as an option. The options of all commands are made from these fields.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from difflib import get_close_matches
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import DiskLimit, Isolation, LockKind, Mirror
from orchestrator.core.records import ScenarioSummary
from orchestrator.core.toml_lines import line_of

MAX_KEEP_ALIVE_S: Final = 48 * 3600
MARGIN_S: Final = 300.0
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([smh]?)")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?")
_SIZES: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_TIME_OF_DAY: Final = re.compile(r"(\d{1,2}):(\d\d)(?::00)?")
_UNITS_S: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_PERIODS_S: Final = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0}
#: Suffixes that are no part of an agent's name; `.5` is.
_FILES: Final = frozenset({".toml", ".py"})
#: The folder of all sweeps, where neither --runs nor SWEEP_RUNS names one.
RUNS: Final = Path("runs")
#: The metavar of options that `seconds` reads.
DURATION: Final = "SECONDS|10m|8h"
#: Parts of the help, in its order.
Panel = Literal["What", "Agents", "How much", "Time limits", "Budgets", "Resume", "Where", "Output"]


def seconds(value: Any) -> Any:
    """Read a duration: `90` and `90s` are seconds, `10m` minutes, `8h` hours. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip().lower())
    if match is None:
        raise ValueError(f"{value!r} is not a duration. Write for example 90, 90s, 10m or 8h")
    return float(match[1]) * _UNITS_S[match[2]]


_LONGEST_WAIT_S: Final = 10 * 366 * 86400.0


def moment(text: str, now: datetime) -> float:
    """Read a deadline, as seconds since 1970: `07:00` is the next such time, `8h` is from now, a date is itself.

    `now` is this machine's time without a zone, and so are dates that name none. Raises ValueError for other words, for
    a number without a unit, and for a moment that is over.
    """
    span = _DURATION.fullmatch(text.strip().lower())
    if span and not span[2]:
        raise ValueError(f"{span[1]} has no unit. Write {span[1]}h, {span[1]}m, {span[1]}s, or a time such as 07:00")
    if span and float(span[1]):
        if (wait := float(seconds(text))) > _LONGEST_WAIT_S:
            raise ValueError(f"{text} is too far away. Give at most 10 years")
        return now.timestamp() + wait
    of_day = _TIME_OF_DAY.fullmatch(text)
    try:
        at = (
            datetime.combine(now.date(), time(int(of_day[1]), int(of_day[2])))
            if of_day
            else datetime.fromisoformat(text)
        )
    except ValueError:
        raise ValueError(f"{text!r} is not a deadline. Write 07:00, 8h or 2026-11-24T07:00") from None
    if of_day and at <= now:
        at += timedelta(days=1)
    if at.timestamp() <= now.timestamp():
        raise ValueError(f"{text} is in the past. Give a later time")
    return at.timestamp()


def _per_second(value: Any) -> Any:
    """Read a rate: `20/s`, `20` or `300/min`. Raises ValueError."""
    if not isinstance(value, str):
        return value
    number, _, unit = value.partition("/")
    try:
        rate = float(number) / _PERIODS_S[unit.strip()]
    except (KeyError, ValueError):
        rate = 0.0
    if not rate > 0:
        raise ValueError(f"{value!r} is not a rate. Write for example 20/s or 300/min")
    return rate


def _bytes(value: Any) -> Any:
    """Read a number of bytes: `60GB`, `500MB`, `1.5 TB`. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip().lower())
    if match is None:
        raise ValueError(f"{value!r} is not a size. Write for example 60GB or 500MB")
    return int(float(match[1]) * _SIZES[match[2]])


def _share(value: Any) -> Any:
    """Read a share: `0.9` or `90%`. Raises ValueError."""
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{value!r} is not a share. Write for example 0.9 or 90%")
    return share


def _deadline(value: Any) -> Any:
    """Read a deadline as text; TOML has types for dates, times and numbers. Raises ValueError."""
    text = (
        value.isoformat() if isinstance(value, date | time) else str(value) if isinstance(value, int | float) else value
    )
    if isinstance(text, str):
        moment(text, datetime(1970, 1, 2))  # noqa: DTZ001 - whether it can be read does not depend on the day
    return text


def _mirrors(value: tuple[str, ...]) -> tuple[str, ...]:
    """Check that each is a mirror. Raises ValueError."""
    for each in value:
        Mirror.parse(each)
    return value


Duration = Annotated[PositiveFloat, BeforeValidator(seconds)]
#: A duration that may be 0.
Patience = Annotated[NonNegativeFloat, BeforeValidator(seconds)]
Rate = Annotated[PositiveFloat, BeforeValidator(_per_second)]
Bytes = Annotated[PositiveInt, BeforeValidator(_bytes)]
Share = Annotated[float, BeforeValidator(_share)]
Deadline = Annotated[str, BeforeValidator(_deadline)]


@dataclass(frozen=True, slots=True)
class Option:
    """The words of a setting on the command line, beside its name, type and default.

    An option of few words has these as its metavar. `env` is a variable that is read if the option is not typed.
    `otherwise` explains a default that is no value. `is_fixed` is a setting that a resume refuses to change: it is part
    of what a sweep is.
    """

    panel: Panel
    help: str
    metavar: str = ""
    short: str = ""
    env: str = ""
    otherwise: str = ""
    is_fixed: bool = False


class Settings(BaseModel):
    """A frozen table of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Timeouts(Settings):
    """The time limit of each stage; a stage that takes longer is ended."""

    #: The endpoint grants a run at once; two minutes cover its bad days.
    start: Annotated[Duration, Option("Time limits", "For the endpoint to grant the run.", DURATION)] = 120
    #: Cloud devboxes with large images take minutes.
    boot: Annotated[Duration, Option("Time limits", "For the devbox to boot.", DURATION)] = 900
    #: Installing an agent over a slow network.
    prepare: Annotated[Duration, Option("Time limits", "For the agent's install.", DURATION)] = 900
    solve: Annotated[
        Duration | None, Option("Time limits", "For the agent to work.", DURATION, otherwise="the scenario's, else 1h")
    ] = None
    #: The collection of files never holds up a score for long.
    gather: Annotated[Duration, Option("Time limits", "For the collection of the agent's files.", DURATION)] = 300
    score: Annotated[
        Duration | None, Option("Time limits", "For the scorers.", DURATION, otherwise="the scenario's, else 30m")
    ] = None
    #: A devbox that does not shut down ends by its keep-alive.
    release: Annotated[Duration, Option("Time limits", "For the devbox to shut down.", DURATION)] = 120

    def solve_for(self, scenario: float | None) -> float:
        """The agent's time: what the user says, else what the scenario says, else an hour."""
        return self.solve or scenario or 3600.0

    def score_for(self, scenario: float | None) -> float:
        """The scorers' time: what the user says, else what the scenario says, else half an hour."""
        return self.score or scenario or 1800.0

    def keep_alive(self, scenario: ScenarioSummary) -> int:
        """The seconds that a devbox must live: its stages, one agent's time of waiting for a turn, and a margin.

        Raises UsageError above the 48 hours that an endpoint grants.
        """
        needed = self.boot + MARGIN_S
        for step in scenario.steps or (scenario,):
            solve, score = self.solve_for(step.agent_timeout), self.score_for(step.scorer_timeout)
            needed += self.prepare + 2 * solve + self.gather + score
        if needed > MAX_KEEP_ALIVE_S:
            raise UsageError(
                f"The timeouts add up to {needed / 3600:.1f} h for one devbox; an endpoint grants 48 h. "
                "Lower --timeout-solve or --timeout-score."
            )
        return int(needed)


class ArmConfig(Settings):
    """An agent with its model and settings."""

    #: A name, a path to a .toml, `command:SHELL COMMAND`, `module:Class` or `file.py:Class`.
    agent: str
    #: The arm's name in results; made from agent and model if not given.
    name: str = ""
    model: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    #: Its trials in flight at most, so that it leaves devboxes to the others; None: its fair share.
    agents: PositiveInt | None = None
    #: Its budget in US dollars; once it is spent, no trial of this arm is started, and the other arms continue.
    cost: PositiveFloat | None = None


class EndpointConfig(Settings):
    """The settings that say where benchmarks are served."""

    endpoint: Annotated[
        str | None,
        Option(
            "Where",
            "A Runloop-compatible service. Its key is read from RUNLOOP_API_KEY.",
            "URL",
            env="RUNLOOP_BASE_URL",
            otherwise="an embedded service",
        ),
    ] = None
    #: Devboxes without isolation are for machines that permit no sandboxes, and for nothing else.
    isolation: Annotated[
        Isolation,
        Option(
            "Where",
            f"Isolation of the devboxes that this machine runs: {', or '.join(each.meaning for each in Isolation)}.",
            is_fixed=True,
        ),
    ] = Isolation.LOCAL
    #: "none" is for file systems that have no locks: see `locks`.
    lock: Annotated[
        LockKind,
        Option(
            "Where",
            "Protection of a folder from a second process: a lock, or a note for file systems without locks. A note "
            "does not protect from a process on another machine.",
            env="SWEEP_LOCK",
        ),
    ] = "file"


class RegistryConfig(Settings):
    """The settings that say where images are had, and how many are kept."""

    #: Only a mirror whose address says so is asked without TLS, or a registry on this machine.
    registry_mirror: Annotated[
        tuple[str, ...],
        AfterValidator(_mirrors),
        Option(
            "Where",
            "Another place to ask for the images of a registry, before the registry itself. Repeat it for more.",
            "REGISTRY=URL",
            env="SWEEP_REGISTRY_MIRRORS",
            otherwise="none",
        ),
    ] = ()
    #: A disk may be there for more than images; without a number some of it stays free all the same.
    image_cache: Annotated[
        Bytes | None,
        Option(
            "Where",
            "Room for the images of scenarios. When it is used up, images that no devbox uses go, the least recently "
            "used first.",
            "60GB|500MB",
            env="SWEEP_IMAGE_CACHE",
            otherwise="the disk, but for 5% or 5GB of it",
        ),
    ] = None
    #: An image that was published may differ from what its Dockerfile gives today.
    rebuild: Annotated[
        bool,
        Option(
            "Where",
            "Build the images of scenarios that have an environment/Dockerfile also where their task.toml names a "
            "docker_image.",
            otherwise="docker_image is fetched",
            is_fixed=True,
        ),
    ] = False


class NamesConfig(Settings):
    """The settings that say where benchmarks are looked up by name."""

    registry: Annotated[
        tuple[str, ...],
        Option(
            "Where",
            "A list of benchmarks by name and version, in the form of Harbor's registry.json. Repeat it for more; the "
            "first that has a name wins.",
            "FILE|URL",
            env="SWEEP_REGISTRIES",
            otherwise="Harbor's public list",
        ),
    ] = ()


class DevboxConfig(Settings):
    """The settings of the devboxes that this machine runs."""

    #: A disk of its own for each devbox is a loop device, which only root has.
    disk_limit: Annotated[
        DiskLimit,
        Option(
            "Where",
            f"What becomes of a devbox at the limit of its disk: {', or '.join(each.meaning for each in DiskLimit)}.",
            is_fixed=True,
        ),
    ] = DiskLimit.WATCHED


class BarsConfig(Settings):
    """The settings that say when a sweep is good enough for the exit code 0."""

    #: Whoever looks at the exit code alone would not see that a trial is missing.
    accept: Annotated[
        Share, Option("Output", "The share of the trials that must have a score for the exit code 0.", "0.9|90%")
    ] = 1.0
    fail_under: Annotated[
        float | None,
        Option(
            "Output",
            "The exit code is 1 if the mean score of an arm is less than this.",
            "SCORE",
            otherwise="any mean will do",
        ),
    ] = None


class SweepConfig(EndpointConfig, NamesConfig, RegistryConfig, DevboxConfig, BarsConfig):
    """The settings of one sweep."""

    benchmark: str
    arms: tuple[ArmConfig, ...]
    include: Annotated[
        tuple[str, ...],
        Option(
            "What",
            "Run only scenarios whose name or id matches. Repeat it for more.",
            "GLOB",
            otherwise="all scenarios",
        ),
    ] = ()
    exclude: Annotated[
        tuple[str, ...],
        Option("What", "Leave out scenarios whose name or id matches. Repeat it for more.", "GLOB", otherwise="none"),
    ] = ()
    limit: Annotated[PositiveInt | None, Option("What", "Run only the first N scenarios.", "N", otherwise="all")] = None
    #: A scenario that cannot run is a failed trial, so that a mean is of as many scenarios as it says.
    skip_unsupported: Annotated[
        bool, Option("What", "Leave out scenarios that cannot run here.", otherwise="each is a failed trial")
    ] = False
    #: The interpreter that runs Python agents; None: the active virtual environment's, else ours.
    python: Annotated[
        Path | None,
        Option(
            "Agents", "The interpreter for Python agents.", "PATH", otherwise="the active environment's", is_fixed=True
        ),
    ] = None
    #: Partial work can pass, so an agent that crashed or ran out of time is scored all the same.
    on_agent_failure: Annotated[
        Literal["score", "fail"],
        Option(
            "Agents",
            "Outcome of a trial whose agent crashed or timed out: score its work, or fail.",
            is_fixed=True,
        ),
    ] = "score"
    network: Annotated[
        Literal["agent", "none", "host"],
        Option(
            "Agents",
            "Network access of devboxes: the hosts that scenario and agent name, nothing, or everything that their "
            "host reaches.",
            is_fixed=True,
        ),
    ] = "agent"
    #: Results of one trial differ by luck; one is enough to look, more are needed to compare.
    trials: Annotated[PositiveInt, Option("How much", "Trials of each scenario.", "N", "-k")] = 1
    #: Agents mostly wait for their model, so several devboxes per core keep a small machine busy.
    devboxes: Annotated[PositiveInt, Option("How much", "Devboxes at once; each is for one trial.", "N", "-n")] = 8
    agents: Annotated[
        PositiveInt | None, Option("How much", "Agents that work at once.", "N", otherwise="as many as devboxes")
    ] = None
    rate: Annotated[
        Rate | None,
        Option("How much", "HTTP requests a second to the endpoint.", "N/s", otherwise="20/s; no limit on loopback"),
    ] = None
    attempts: Annotated[
        PositiveInt,
        Option("How much", "Attempts of a trial, if its devbox or the endpoint fails and not the agent.", "N"),
    ] = 3
    scorings: Annotated[
        PositiveInt, Option("How much", "Scorings of a run, before its scorers count as broken.", "N")
    ] = 3
    #: On a service of ours: as each scenario declares, or one way for all of them.
    scoring: Annotated[
        Literal["declared", "separate", "shared", "live"],
        Option(
            "What",
            "Where scorers run: declared, as each scenario says; separate, in a fresh environment with the agent's "
            "work; shared, in a new devbox over the agent's files; or live, beside what the agent left running.",
            "MODE",
            is_fixed=True,
        ),
    ] = "declared"
    timeouts: Timeouts = Timeouts()
    deadline: Annotated[
        Deadline | None,
        Option(
            "Budgets",
            "Start no trial after this moment: a time of day, a time from now, or a date.",
            "07:00|8h|DATE",
            otherwise="none",
        ),
    ] = None
    max_cost: Annotated[
        PositiveFloat | None,
        Option(
            "Budgets",
            "Start no trial once the agents report this cost, in all attempts together.",
            "USD",
            otherwise="no limit",
        ),
    ] = None
    #: Hours between a devbox's boot and its release, summed: a cloud bills these.
    max_devbox_hours: Annotated[
        PositiveFloat | None,
        Option(
            "Budgets", "Start no trial once devboxes have run this long, all together.", "HOURS", otherwise="no limit"
        ),
    ] = None
    #: A night in which much fails is better looked at than paid for.
    max_failures: Annotated[
        PositiveInt | None, Option("Budgets", "Start no trial once this many have failed.", "N", otherwise="no limit")
    ] = None
    #: Whoever sends another signal than Ctrl-C (a service manager, a shutdown) cannot wait for ever.
    drain: Annotated[
        Patience | None,
        Option(
            "Budgets",
            "Time for running trials to finish after a stop. Those that do not finish are ended; a resume runs them "
            "again.",
            DURATION,
            otherwise="no limit after Ctrl-C at a terminal and after a budget; 5m after other signals",
        ),
    ] = None
    #: Such failures are no trial's fault, and would continue for the rest of the night.
    same_failures: Annotated[
        PositiveInt,
        Option(
            "Budgets",
            "Stop after this many failures in a row of devboxes, or of installs of one agent. Stop also if an agent "
            "crashed in the same way in this many trials and achieved nothing.",
            "N",
        ),
    ] = 10
    unreachable: Annotated[
        Duration, Option("Budgets", "Stop if the endpoint has granted no run for this long.", DURATION)
    ] = 1800
    #: Whom to tell is no part of what a sweep is, and an address is a secret: it is in no file of the sweep's.
    notify: Annotated[
        tuple[str, ...],
        Field(exclude=True),
        Option(
            "Output",
            "Tell of the end, a stop, and a night that goes badly: a shell command, which gets JSON on standard input, "
            "a plug-in's NAME:TEXT, or '$NAME', a variable with one of these or with an address of Apprise's. Repeat "
            "it for more. The variable SWEEP_NOTIFY adds to it.",
            "COMMAND|'$NAME'",
            otherwise="nobody",
        ),
    ] = ()
    name: Annotated[
        str | None,
        Option(
            "Resume",
            "The sweep's folder below --runs. An existing sweep is resumed.",
            "NAME",
            otherwise="a new folder, or that of the same sweep if it is unfinished",
            is_fixed=True,
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _arms_have_names(cls, settings: Any) -> Any:
        """Give each arm without a name one; different arms that would have the same are numbered."""
        if not isinstance(settings, Mapping) or not isinstance(settings.get("arms", ()), list | tuple):
            return settings
        arms = [each.model_dump() if isinstance(each, ArmConfig) else each for each in settings.get("arms", ())]
        taken = {str(arm["name"]) for arm in arms if isinstance(arm, Mapping) and arm.get("name")}
        named = arms.copy()
        for position, arm in enumerate(arms):
            if not isinstance(arm, Mapping) or arm.get("name"):
                continue
            name = arm_name(str(arm.get("agent", "")), arm.get("model"))
            if arm not in arms[:position]:
                numbered = (f"{name}-{number}" for number in count(2))
                name = next(each for each in chain([name], numbered) if each not in taken)
            taken.add(name)
            named[position] = dict(arm) | {"name": name}
        return dict(settings) | {"arms": named}

    @model_validator(mode="after")
    def _arms_are_there_and_differ(self) -> Self:
        if not self.arms:
            raise ValueError("no agent: name one with --agent, for example --agent oracle")
        names = [arm.name for arm in self.arms]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"two arms are called {', '.join(doubles)}: give each a name of its own")
        return self


def arm_name(agent: str, model: str | None) -> str:
    """The name of an arm that was given none: its agent, shortened where it is a command or a path, and its model."""
    reference, _, symbol = agent.partition(":")
    path = Path(reference)
    stem = path.stem if path.suffix in _FILES else path.name
    is_class = reference != "command" and symbol.replace(".", "_").isidentifier()
    base = symbol if is_class else stem
    return f"{base}+{model}" if model else base


def load_file(path: Path) -> dict[str, Any]:
    """Read the settings of a sweep.toml. Raises UsageError naming file and place."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}.") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """A value that was typed as an option, or exported as a variable; `name` is `--devboxes` or `SWEEP_LOCK`."""

    name: str
    value: Any


#: Messages by the first word of the parser's kind of problem.
_EXPECTED: Final = {
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a finite number",
    "bool": "must be true or false",
    "string": "must be text",
    "tuple": "must be a list",
    "model": "must be a table",
    "dict": "must be a table",
    "missing": "is required",
}
#: The settings that `sweep set` changes while a sweep runs; some of them may be none.
LIVE: Final = ("devboxes", "agents", "rate", "deadline", "max_cost", "max_devbox_hours", "max_failures")
_UNLIMITED: Final = frozenset(LIVE) - {"devboxes", "rate"}
_M = TypeVar("_M", bound=Settings)


def resolve(
    settings: Mapping[str, Any], *, source: Path | str = "the command line", typed: Mapping[str, Typed] | None = None
) -> SweepConfig:
    """Make a configuration of settings. Raises UsageError that names every wrong one, and the expected values.

    `source` is the file or the command that the settings are from. `typed` overrides them, by keys such as `devboxes`
    and `timeouts.solve`; mistakes in it are named as they were typed.
    """
    typed, merged = typed or {}, dict(settings)
    for key, each in typed.items():
        table, _, name = key.rpartition(".")
        inside = merged.get(table, {}) if table else merged
        if isinstance(inside, Mapping):  # other values are refused below, by their key
            merged |= {table: {**inside, name: each.value}} if table else {name: each.value}

    return validated(SweepConfig, merged, source=source, typed=typed)


def changed(config: SweepConfig, settings: Mapping[str, str]) -> SweepConfig:
    """Change settings of a sweep that runs: each value as typed, or `none` for no limit.

    Raises UsageError for a setting that cannot change, or a value that is none.
    """
    given: dict[str, Typed] = {}
    for name, text in settings.items():
        key = name.replace("-", "_")
        if key not in LIVE:
            near = get_close_matches(key, LIVE, 1)
            known = [each.replace("_", "-") for each in LIVE]
            hint = f"Did you mean {near[0].replace('_', '-')}?" if near else f"These can: {', '.join(known)}."
            raise UsageError(f"{name} cannot be set while a sweep runs. {hint}")
        given[key] = Typed(name=name, value=None if text == "none" and key in _UNLIMITED else text)
    values = {key: each.value for key, each in given.items()}
    return validated(SweepConfig, config.model_dump() | values, source="sweep set", typed=given)


def validated(model: type[_M], settings: Mapping[str, Any], *, source: Path | str, typed: Mapping[str, Typed]) -> _M:
    """Check settings against a table of them, as `resolve` does for all. Raises UsageError."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(problem, source, typed) for problem in error.errors()) + ".") from None


def _explain(problem: Any, source: Path | str, typed: Mapping[str, Typed]) -> str:
    """A mistake with its place: an option, a variable, or file, line and key."""
    location, kind = [str(part) for part in problem["loc"]], problem["type"]
    message = problem["msg"].removeprefix("Value error, ")
    context = problem.get("ctx", {})
    if kind in {"literal_error", "enum"}:
        message = f"choose {problem['ctx']['expected'].replace(chr(39), '')}"
    elif "gt" in context:
        bound = context["gt"]
        message = f"must be greater than {bound:g}" if isinstance(bound, float) else f"must be at least {bound + 1}"
    elif "ge" in context:
        message = f"must be at least {context['ge']:g}"
    elif kind.partition("_")[0] in _EXPECTED:
        message = _EXPECTED[kind.partition("_")[0]]
    given = typed.get(".".join(location[:2])) or typed.get(location[0] if location else "")
    if given is not None:
        value = problem["input"] if isinstance(given.value, list) else given.value
        words = f"{given.name}{' ' if given.name[0] == '-' else '='}{value}"
        return f"{given.name if kind == 'value_error' else words}: {message}"  # such a message has the value
    place = str(source)
    if isinstance(source, Path) and source.is_file():
        place += line_of(source.read_text("utf-8", "replace"), location)
    if kind == "extra_forbidden":
        known = [*SweepConfig.model_fields, *Timeouts.model_fields, *ArmConfig.model_fields]
        near = get_close_matches(location[-1], known, 1)
        return f"{place}: unknown key {'.'.join(location)!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    return ": ".join(filter(None, [place, ".".join(location), message]))
