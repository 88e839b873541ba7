"""Every knob of a sweep, with its default and the reason for it; named alike in sweep.toml and on the command line."""

import re
import tomllib
from collections.abc import Container, Mapping
from datetime import date, datetime, time, timedelta
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
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
from orchestrator.core.protocol import Isolation

MAX_KEEP_ALIVE: Final = 48 * 3600
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([smh]?)")
_TIME_OF_DAY: Final = re.compile(r"(\d{1,2}):(\d\d)(?::00)?")
_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
MARGIN: Final = 300.0
#: Suffixes that are no part of an agent's name; `.5` is.
_FILES: Final = frozenset({".toml", ".py"})


def seconds(value: Any) -> Any:
    """A duration as people write it: `90` and `90s` are seconds, `10m` minutes, `8h` hours. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip().lower())
    if match is None:
        raise ValueError(f"{value!r} is not a duration. Write for example 90, 90s, 10m or 8h")
    return float(match[1]) * _UNITS[match[2]]


def moment(text: str, now: datetime) -> float:
    """A deadline as seconds since 1970: `07:00` is the next such time, `8h` is from now, a date and time is itself.

    `now` is this machine's time without a zone, and so are dates that name none. Raises ValueError for what cannot be
    read, for a number alone, which nobody means in seconds, and for a moment that is over.
    """
    span = _DURATION.fullmatch(text.strip().lower())
    if span and not span[2]:
        raise ValueError(f"{span[1]} has no unit. Write {span[1]}h, {span[1]}m, {span[1]}s, or a time such as 07:00")
    if span and float(span[1]):
        return now.timestamp() + float(seconds(text))
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


def _deadline(value: Any) -> Any:
    """TOML has dates, times and numbers of its own. Raises ValueError for what is no deadline."""
    text = (
        value.isoformat() if isinstance(value, date | time) else str(value) if isinstance(value, int | float) else value
    )
    if isinstance(text, str):
        moment(text, datetime(1970, 1, 2))  # noqa: DTZ001 - whether it can be read does not depend on the day
    return text


Duration = Annotated[PositiveFloat, BeforeValidator(seconds)]
#: As `Duration`, or none at all.
Patience = Annotated[NonNegativeFloat, BeforeValidator(seconds)]
Deadline = Annotated[str, BeforeValidator(_deadline)]


class Knobs(BaseModel):
    """A frozen table of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Timeouts(Knobs):
    """How long each stage may take, in seconds or as `10m`; a stage that takes longer is ended, for real."""

    #: The endpoint answers a request for a run at once; two minutes cover its bad days.
    start: Duration = 120
    #: Cloud devboxes with large images take minutes.
    boot: Duration = 900
    #: Installing an agent over a slow network.
    prepare: Duration = 900
    #: None: the scenario's own limit, or an hour where it has none.
    solve: Duration | None = None
    #: Bringing files home never holds up a score for long.
    gather: Duration = 300
    #: None: the scenario's own limit, or half an hour where it has none.
    score: Duration | None = None
    #: A devbox that does not go away goes away by its keep-alive.
    release: Duration = 120

    def solve_for(self, scenario: float | None) -> float:
        """The agent's time: what the user says, else what the scenario says, else an hour."""
        return self.solve or scenario or 3600.0

    def score_for(self, scenario: float | None) -> float:
        """The scorers' time: what the user says, else what the scenario says, else half an hour."""
        return self.score or scenario or 1800.0

    def keep_alive(self, *, agent: float | None, scorer: float | None) -> int:
        """How long a devbox must live: every stage that needs it, one agent's time of waiting for a turn, a margin.

        Raises UsageError above the 48 hours that an endpoint grants.
        """
        solve, score = self.solve_for(agent), self.score_for(scorer)
        needed = self.boot + self.prepare + 2 * solve + self.gather + score + MARGIN
        if needed > MAX_KEEP_ALIVE:
            raise UsageError(
                f"The timeouts add up to {needed / 3600:.1f} h for one devbox; an endpoint grants 48 h. "
                "Lower --timeout-solve or --timeout-score."
            )
        return int(needed)


class ArmConfig(Knobs):
    """An agent with its model and settings."""

    #: A name, a path to a .toml, `command:SHELL COMMAND`, `module:Class` or `file.py:Class`.
    agent: str
    #: How results call this arm; made from agent and model if not given.
    name: str = ""
    model: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    #: How many of its trials may be in flight, so that it leaves devboxes to the others; None: its fair share.
    agents: PositiveInt | None = None
    #: US dollars that it may spend; then no trial of it is started any more, and the other arms go on.
    cost: PositiveFloat | None = None


class SweepConfig(Knobs):
    """What one sweep does."""

    benchmark: str
    arms: tuple[ArmConfig, ...]
    #: Results of one trial differ by luck; one is enough to look, more are needed to compare.
    trials: PositiveInt = 1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: PositiveInt | None = None
    #: A scenario that cannot run is a failed trial, so that no mean is of fewer than it says; or it is left out.
    skip_unsupported: bool = False
    #: Devboxes in flight: agents mostly wait for their model, so several per core keep a small machine busy.
    devboxes: PositiveInt = 8
    #: Agents solving at once; None: as many as devboxes.
    agents: PositiveInt | None = None
    #: HTTP requests a second; None: 20 for an endpoint elsewhere, unlimited on loopback.
    rate: PositiveFloat | None = None
    #: How often a trial is tried before it is given up, when it is the world that fails.
    attempts: PositiveInt = 3
    #: How often a run is scored before its scorers are called broken.
    scorings: PositiveInt = 3
    #: Partial work can pass, so an agent that crashed or ran out of time is scored all the same.
    on_agent_failure: Literal["score", "fail"] = "score"
    #: Where scorers run, on a service of ours: as each scenario declares, or one way for all of them.
    scoring: Literal["declared", "separate", "shared", "live"] = "declared"
    timeouts: Timeouts = Timeouts()
    #: What a sweep may use up: then it starts no new trial, and goes on when it is run again with more. None: no limit.
    #: The deadline is a time of day (the next one), a time from now, or a date and time: mornings have one.
    deadline: Deadline | None = None
    #: US dollars, as far as agents report what they spend.
    max_cost: PositiveFloat | None = None
    #: Hours between a devbox's boot and its release, summed: what a cloud bills.
    max_devbox_hours: PositiveFloat | None = None
    #: A night in which much fails is better looked at than paid for.
    max_failures: PositiveInt | None = None
    #: Whether the folder's lock keeps other processes out; "none" for file systems that have no locks: see `locks`.
    lock: Literal["file", "none"] = "file"
    #: How long those in flight may go on after a stop; None: to their end after Ctrl-C at a terminal and at the end of
    #: a budget, 5 minutes after a signal from whoever cannot wait for ever (a service manager, a shutdown).
    drain: Patience | None = None
    #: So many failures in a row that are no trial's fault stop the sweep, and so do so many crashes of one agent that
    #: crashes always: it would go on for the rest of the night.
    same_failures: PositiveInt = 10
    #: For so long no run may be granted, with none of ours alive, before the endpoint is called gone or used up.
    unreachable: Duration = 1800
    endpoint: str | None = None
    #: What a devbox may reach: what its scenario and its agent name, nothing, or all that this machine can.
    network: Literal["agent", "none", "host"] = "agent"
    #: `local` boxes are isolated; `none` is for machines that permit no sandboxes, and for nothing else.
    isolation: Isolation = Isolation.LOCAL
    #: The interpreter that runs Python agents; None: the active virtual environment's, else ours.
    python: Path | None = None
    name: str | None = None

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
    """What an arm is called when nobody says: the agent, shortened where it is a command or a path, and its model."""
    reference, _, symbol = agent.partition(":")
    path = Path(reference)
    stem = path.stem if path.suffix in _FILES else path.name
    is_class = reference != "command" and symbol.replace(".", "_").isidentifier()
    base = symbol if is_class else stem
    return f"{base}+{model}" if model else base


def load_file(path: Path) -> dict[str, Any]:
    """The settings in a sweep.toml. Raises UsageError naming file and place."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}.") from None


def resolve(data: Mapping[str, Any], *, source: Path | str = "the command line") -> SweepConfig:
    """Settings as a config. Raises UsageError naming every wrong key, what it may be called, and what was expected.

    `source` is the file that they are in, or what they were typed to: what is wrong there is named as an option.
    """
    try:
        return SweepConfig.model_validate(_with_arm_names(data))
    except ValidationError as error:
        raise UsageError("; ".join(_explain(problem, source) for problem in error.errors()) + ".") from None


def _with_arm_names(data: Mapping[str, Any]) -> dict[str, Any]:
    arms = data.get("arms", ())
    if not isinstance(arms, list | tuple):
        return dict(data)
    taken = {str(arm["name"]) for arm in arms if isinstance(arm, Mapping) and arm.get("name")}
    named: list[Any] = []
    for position, arm in enumerate(arms):
        if isinstance(arm, Mapping) and not arm.get("name"):
            name = arm_name(str(arm.get("agent", "")), arm.get("model"))
            if arm not in arms[:position]:
                name = _free(name, taken)
            taken.add(name)
            named.append(dict(arm) | {"name": name})
        else:
            named.append(arm)
    return dict(data) | {"arms": named}


def _free(name: str, taken: Container[str]) -> str:
    """The name, or the first numbered one that no other arm has: two commands are both called `command`."""
    numbered = (f"{name}-{number}" for number in count(2))
    return name if name not in taken else next(each for each in numbered if each not in taken)


def _explain(problem: Any, source: Path | str) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = [*SweepConfig.model_fields, *Timeouts.model_fields, *ArmConfig.model_fields]
        near = get_close_matches(str(problem["loc"][-1]), known, 1)
        return f"{source}: unknown key {place!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in {"literal_error", "enum"}:
        message = f"choose {problem['ctx']['expected'].replace(chr(39), '')}"
    if not place:
        return f"{source}: {message}"
    is_option = isinstance(source, str) and problem["loc"][0] not in {"benchmark", "arms"}
    option = place.replace("timeouts.", "timeout-").replace("_", "-")
    return f"--{option}: {message}" if is_option else f"{source}: {place}: {message}"
