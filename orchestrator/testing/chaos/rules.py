"""The chaos file: faults, where and how often; and the dice that decides, so that a rehearsal can be repeated.

    seed = 7

    [[rules]]
    fault = "429"
    route = "POST /v1/scenarios/*"
    probability = 0.2
    retry_after = 1.5

A fault takes at most one number of its own. An empty file is a good one: it only lets requests ask for faults. An error
in the file is reported with its line and key.

Each decision is a hash of the seed, the rule, a kind (a route of requests, boots, executions or scorings) and the
number of its events so far. So the same seed and the n-th event of a kind give the same decision, whatever else happens
at the same time. Why not one random stream: a heartbeat more would change the whole night.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError

from orchestrator.core.errors import UsageError
from orchestrator.service.diagnostics import nearest


class Seam(StrEnum):
    """Places where a fault can happen."""

    REQUEST = "request"
    BOOT = "boot"
    EXECUTION = "execution"
    SCORING = "scoring"


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault: its place, the name of the number it takes, and that number's default."""

    seam: Seam
    takes: str | None = None
    default: float | None = None


FAULTS: Final[Mapping[str, Fault]] = {
    **{status: Fault(Seam.REQUEST, "retry_after") for status in ("429", "500", "502", "503", "504")},
    "hang": Fault(Seam.REQUEST, "seconds", 3600.0),
    "late": Fault(Seam.REQUEST, "seconds", 2.0),
    "drop": Fault(Seam.REQUEST),
    "drop-mid-body": Fault(Seam.REQUEST),
    "vanish": Fault(Seam.REQUEST),
    "list-repeats": Fault(Seam.REQUEST),
    "list-skips": Fault(Seam.REQUEST),
    "slow-boot": Fault(Seam.BOOT, "seconds", 10.0),
    "boot-fails": Fault(Seam.BOOT),
    "dies-solving": Fault(Seam.EXECUTION, "seconds", 0.0),
    "dies-scoring": Fault(Seam.SCORING, "seconds", 0.0),
    "scorer-error": Fault(Seam.SCORING, "scorings", 1),
}
"""Every fault.

429, 5xx: such an answer, and no effect; `retry_after` seconds are asked for, if given.
hang: no effect and no answer; after `seconds` the connection is closed. late: the effect, and an answer `seconds` late.
drop: the effect, and the connection is closed before the answer; drop-mid-body: in the middle of it.
vanish: from now on this execution is unknown (404). list-repeats: a page that is not the first opens with the last item
of the one before; list-skips: it lacks its own first item. Both as when items come and go while a list is read.
slow-boot: `seconds` later. dies-solving: `seconds` after an execution's start, if it still runs then.
dies-scoring: `seconds` after the start of the scoring. scorer-error: the first `scorings` of a devbox end in `error`.
"""


def _named(value: Any) -> Any:
    """Return a fault's name; a status may be written as a number."""
    name = str(value) if type(value) is int else value
    if isinstance(name, str) and name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; {_hint(name, FAULTS)}")
    return name


def _hint(word: str, known: Collection[str]) -> str:
    meant = nearest(word, known)
    return f"did you mean {meant}?" if meant else f"known: {', '.join(known)}"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FaultRule(_Table):
    """A fault and its frequency: each event has the `probability`, and at most `times` of them have the fault."""

    fault: Annotated[str, BeforeValidator(_named)]
    #: `GET` or `POST` and the path of requests, `*` standing for anything.
    route: str = Field(default="*", pattern=r"^(\*|(GET|POST|\*) [/*]\S*)$")
    probability: float = Field(default=1.0, ge=0.0, le=1.0)
    times: PositiveInt | None = None
    seconds: NonNegativeFloat | None = None
    retry_after: NonNegativeFloat | None = None
    scorings: PositiveInt | None = None

    @property
    def number(self) -> float | None:
        """The fault's own number, as given or by default."""
        fault = FAULTS[self.fault]
        given: float | None = getattr(self, fault.takes) if fault.takes else None
        return fault.default if given is None else given


class _File(_Table):
    seed: int = 0
    rules: list[Any] = Field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The content of a chaos file."""

    seed: int = 0
    rules: tuple[FaultRule, ...] = ()


#: The keys that are numbers of one fault or another.
NUMBERS: Final = frozenset({"seconds", "retry_after", "scorings"})
_HEADER: Final = re.compile(r"\s*\[\[?\s*([\w.-]+)\s*\]\]?")


def read_rules(path: Path) -> Rules:
    """Read a chaos file. Raises UsageError naming the file, and line and key of everything wrong. Blocking."""
    try:
        text = path.read_text("utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"--chaos {path}: cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--chaos {path}: not valid TOML: {error}.") from None
    tables, lines = document.get("rules"), text.splitlines()
    found: list[tuple[int | None, str, str]] = [(None, key, words) for key, words in _faulty(_File, document)]
    for number, table in enumerate(tables if isinstance(tables, list) else ()):
        problems = _faulty(FaultRule, table)
        if not problems:  # then there may be keys that this fault does not take
            rule = FaultRule.model_validate(table)
            fault = FAULTS[rule.fault]
            instead = f", but {fault.takes}" if fault.takes else ""
            misfits = sorted(rule.model_fields_set & NUMBERS - {fault.takes})
            problems = [(key, f"{rule.fault} does not take it{instead}") for key in misfits]
            if fault.seam is not Seam.REQUEST and "route" in rule.model_fields_set:
                problems.append(("route", f"{rule.fault} does not happen to a request"))
        found += [(number, key, words) for key, words in problems]
    complaints: list[str] = []
    for at, key, words in found:
        place, line = key if at is None else f"rules.{at + 1}.{key}".rstrip("."), _line(lines, at, key)
        complaints.append(f"--chaos {path}" + (f", line {line}" if line else "") + f": {place}: {words}")
    if complaints:
        raise UsageError("; ".join(complaints))
    file = _File.model_validate(document)
    return Rules(seed=file.seed, rules=tuple(FaultRule.model_validate(table) for table in file.rules))


def _faulty(model: type[BaseModel], table: Any) -> list[tuple[str, str]]:
    """Return the wrong keys of a table, each with the reason."""
    try:
        model.model_validate(table)
    except ValidationError as error:
        problems = error.errors()
    else:
        return []
    found: list[tuple[str, str]] = []
    for problem in problems:
        key = str(problem["loc"][0]) if problem["loc"] else ""
        words = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            words = f"unknown key; {_hint(key, model.model_fields)}"
        elif problem["type"] == "string_pattern_mismatch":
            words = f"expected GET or POST and a path, such as 'POST /v1/scenarios/*', got {problem['input']!r}"
        found.append((key, words))
    return found


def _line(lines: Sequence[str], rule: int | None, key: str) -> int | None:
    """Find the line of a key, which tomllib does not tell; None in a file that is laid out unlike the example above."""
    table: int | None = None
    opening: int | None = None
    for number, line in enumerate(lines, start=1):
        header = _HEADER.fullmatch(line.partition("#")[0].rstrip())
        if header and header[1] == "rules":
            table = 0 if table is None else table + 1
        if header and opening is None and (header[1] == key if rule is None else table == rule):
            opening = number
        elif not header and table == rule and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return opening


class Dice:
    """The rules of a chaos file, and the number of faults that each has caused."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._seen: Counter[tuple[int, str]] = Counter()
        self._struck: Counter[int] = Counter()

    def throw(self, kind: str, faults: Iterable[str], *, request: str = "", **about: str) -> FaultRule | None:
        """Return the first rule, in the file's order, that gives an event of this kind one of `faults`, if any.

        `request` is its method and path. `about` is logged.
        """
        struck: FaultRule | None = None
        for number, rule in enumerate(self._rules.rules):
            if rule.fault not in faults or not fnmatchcase(request, rule.route):
                continue
            self._seen[number, kind] += 1
            if struck is not None or (rule.times is not None and self._struck[number] >= rule.times):
                continue
            word = f"{self._rules.seed} {number} {kind} {self._seen[number, kind]}"
            if int.from_bytes(sha256(word.encode()).digest()[:8]) < rule.probability * 2**64:
                self._struck[number] += 1
                struck = rule
                log_injected(rule.fault, rule=number + 1, **about)
        return struck


def faults_of(seam: Seam) -> frozenset[str]:
    """Return the names of the faults that happen in such a place."""
    return frozenset(name for name, fault in FAULTS.items() if fault.seam is seam)


def log_injected(fault: str, **about: str | int) -> None:
    """Log a fault as a warning, for it must be found in the log of a quiet service, too."""
    structlog.get_logger().warning("chaos.injected", fault=fault, **about)
