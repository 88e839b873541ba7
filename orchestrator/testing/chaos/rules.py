"""The chaos file: which faults, where, how often. What is wrong in it is told by line and key.

    seed = 7

    [[rules]]
    fault = "429"
    route = "POST /v1/scenarios/*"
    probability = 0.2
    retry_after = 1.5

A fault takes at most one number of its own. An empty file is a good one: it only lets requests ask for faults.
"""

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError

from orchestrator.core.errors import UsageError
from orchestrator.service.diagnostics import nearest


class Seam(StrEnum):
    """What a fault happens to."""

    REQUEST = "request"
    BOOT = "boot"
    EXECUTION = "execution"
    SCORING = "scoring"


@dataclass(frozen=True, slots=True)
class Fault:
    """What a fault happens to, the number it takes, and that number where none is given."""

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
    """A fault by its name; a status may be written as the number it is."""
    name = str(value) if type(value) is int else value
    if isinstance(name, str) and name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; {_hint(name, FAULTS)}")
    return name


def _hint(word: str, known: Collection[str]) -> str:
    meant = nearest(word, known)
    return f"did you mean {meant}?" if meant else f"known: {', '.join(known)}"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Rule(_Table):
    """A fault, and how often: each happening has the `probability`, and there are at most `times` of them."""

    fault: Annotated[str, BeforeValidator(_named)]
    #: Which requests: `GET` or `POST` and a path, `*` standing for anything.
    route: str = Field(default="*", pattern=r"^(\*|(GET|POST|\*) [/*]\S*)$")
    probability: float = Field(default=1.0, ge=0.0, le=1.0)
    times: PositiveInt | None = None
    seconds: NonNegativeFloat | None = None
    retry_after: NonNegativeFloat | None = None
    scorings: PositiveInt | None = None

    @property
    def number(self) -> float | None:
        """What the fault's own number is, as given or by default."""
        fault = FAULTS[self.fault]
        given: float | None = getattr(self, fault.takes) if fault.takes else None
        return fault.default if given is None else given


class _File(_Table):
    seed: int = 0
    rules: list[Any] = Field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A chaos file that was read."""

    seed: int = 0
    rules: tuple[Rule, ...] = ()


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
    tables = document.get("rules")
    problems: list[tuple[int | None, str, str]] = [(None, key, words) for key, words in _faulty(_File, document)]
    for number, table in enumerate(tables if isinstance(tables, list) else ()):
        problems += [
            (number, key, words) for key, words in _faulty(Rule, table) or _misfits(Rule.model_validate(table))
        ]
    if problems:
        raise UsageError("; ".join(_located(path, text.splitlines(), *problem) for problem in problems))
    file = _File.model_validate(document)
    return Rules(seed=file.seed, rules=tuple(Rule.model_validate(table) for table in file.rules))


def _faulty(model: type[BaseModel], table: Any) -> list[tuple[str, str]]:
    """The keys of a table that are wrong, and why."""
    try:
        model.model_validate(table)
    except ValidationError as error:
        return [_explain(problem, model) for problem in error.errors()]
    return []


def _explain(problem: Any, model: type[BaseModel]) -> tuple[str, str]:
    key = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        return key, f"unknown key; {_hint(key, model.model_fields)}"
    if problem["type"] == "string_pattern_mismatch":
        return key, f"expected GET or POST and a path, such as 'POST /v1/scenarios/*', got {problem['input']!r}"
    return key, problem["msg"].removeprefix("Value error, ")


def _misfits(rule: Rule) -> list[tuple[str, str]]:
    """The keys of a rule that its fault has no use for, and why."""
    fault = FAULTS[rule.fault]
    instead = f", but {fault.takes}" if fault.takes else ""
    found = [
        (key, f"{rule.fault} does not take it{instead}")
        for key in sorted(rule.model_fields_set & NUMBERS - {fault.takes})
    ]
    if fault.seam is not Seam.REQUEST and "route" in rule.model_fields_set:
        found.append(("route", f"{rule.fault} does not happen to a request"))
    return found


def _located(path: Path, lines: Sequence[str], rule: int | None, key: str, words: str) -> str:
    place = key if rule is None else f"rules.{rule + 1}.{key}".rstrip(".")
    line = _line(lines, rule, key)
    return f"--chaos {path}" + (f", line {line}" if line else "") + f": {place}: {words}"


def _line(lines: Sequence[str], rule: int | None, key: str) -> int | None:
    """Where a key stands: tomllib does not say. None where the file is laid out unlike the example above."""
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
