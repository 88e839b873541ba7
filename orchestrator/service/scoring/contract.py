"""A scoring contract, read once and strictly into records; the code that runs scorers never sees a missing key.

Every mistake of a contract is reported at once, by the key the client wrote, because a benchmark of hundreds of
scenarios is fixed in one go or not at all. The rules are those of the published API document, section
"ScoringFunction"; where it leaves a field optional that a scorer cannot do without (a script, a command), we require
it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import fsum
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

import msgspec
import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from orchestrator.service.environments.pythons import check_requirements
from orchestrator.service.errors import BadRequest

WEIGHT_TOLERANCE: Final = 1e-6
#: A single environment variable holds 128 KiB on Linux, its name included.
MAX_PARAMS_BYTES: Final = 120 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """Facts beside a contract: the registered custom types, and the reason why a Python constraint is not met."""

    custom_types: Collection[str]
    python_problem: Callable[[str], str | None]


def _printable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


Text = Annotated[str, AfterValidator(_printable)]
Said = Annotated[Text, AfterValidator(_said)]


class ScorerType(StrEnum):
    """The kinds of scorers by the wire's names."""

    BASH_SCRIPT = "bash_script_scorer"
    PYTHON_SCRIPT = "python_script_scorer"
    COMMAND = "command_scorer"
    TEST_BASED = "test_based_scorer"
    CUSTOM = "custom_scorer"
    AST_GREP = "ast_grep_scorer"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class BashScript(_Record):
    """Prints `score=<number>`."""

    type: Literal[ScorerType.BASH_SCRIPT]
    bash_script: Said


class PythonScript(_Record):
    """Prints a bare number as its last line; runs in an environment with its requirements."""

    type: Literal[ScorerType.PYTHON_SCRIPT]
    python_script: Said
    requirements_contents: Text | None = None
    python_version_constraint: Text | None = None

    @field_validator("requirements_contents")
    @classmethod
    def _only_wheels(cls, requirements: str | None) -> str | None:
        check_requirements(requirements or "")
        return requirements

    @field_validator("python_version_constraint")
    @classmethod
    def _is_met(cls, constraint: str | None, info: ValidationInfo) -> str | None:
        checks: Checks | None = info.context
        if checks is not None and constraint is not None and (problem := checks.python_problem(constraint)):
            raise ValueError(problem)
        return constraint


class CommandScorer(_Record):
    """Passes with exit status 0."""

    type: Literal[ScorerType.COMMAND]
    command: Said


class TestFile(_Record):
    """A file that appears in the working directory only when it is time to score."""

    __test__ = False
    file_path: Said
    file_contents: Text | None = None

    @field_validator("file_path")
    @classmethod
    def _is_inside(cls, path: str) -> str:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or path.endswith("/"):
            raise ValueError(f"expected a file's path relative to the working directory, without '..', got {path!r}")
        return path


class TestBased(_Record):
    """Writes its files, then passes with exit status 0 of its command."""

    __test__ = False
    type: Literal[ScorerType.TEST_BASED]
    test_command: Said
    test_files: list[TestFile] | None = None


class Custom(_Record):
    """A registered bash script that reads its parameters from `$RL_SCORER_CONTEXT`."""

    type: Literal[ScorerType.CUSTOM]
    custom_scorer_type: Said
    scorer_params: Any = None

    @field_validator("custom_scorer_type")
    @classmethod
    def _is_registered(cls, custom_type: str, info: ValidationInfo) -> str:
        checks: Checks | None = info.context
        if checks is not None and custom_type not in checks.custom_types:
            known = ", ".join(sorted(checks.custom_types)) or "none"
            raise ValueError(f"no scorer of type {custom_type!r} is registered (registered: {known})")
        return custom_type

    @field_validator("scorer_params")
    @classmethod
    def _is_small(cls, params: Any) -> Any:
        if len(orjson.dumps(params)) > MAX_PARAMS_BYTES:
            raise ValueError(
                f"must be at most {MAX_PARAMS_BYTES} bytes of JSON: it reaches the scorer as an environment variable"
            )
        return params


class AstGrep(_Record):
    """Passes when the pattern is found."""

    type: Literal[ScorerType.AST_GREP]
    pattern: Said
    search_directory: Said
    lang: Text | None = None


Scorer = BashScript | PythonScript | CommandScorer | TestBased | Custom | AstGrep


class Function(_Record):
    """One scoring function: its weight is its share of the total."""

    name: Annotated[str, Field(pattern=r"\A[a-zA-Z0-9_-]+\z")]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    scorer: Annotated[Scorer, Field(discriminator="type")]


class Contract(_Record):
    """All functions of a scenario, in the order they run."""

    scoring_function_parameters: Annotated[list[Function], Field(min_length=1)]


class ContractMistaken(BadRequest):
    """The contract cannot be used; `mistakes` are the reasons, each opening with its key."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__(f"The scoring contract is not valid: {'; '.join(mistakes)}.")
        self.mistakes = mistakes


def read_contract(document: Any, checks: Checks | None = None) -> tuple[Function, ...]:
    """Read the functions of a contract as sent, checked against the world too if `checks` are given.

    Raises ContractMistaken naming every wrong key.
    """
    key, mistakes = "scoring_contract.scoring_function_parameters", []
    functions = document.get("scoring_function_parameters") if isinstance(document, Mapping) else None
    places: dict[str, list[str]] = {}
    weights: list[Any] = []
    for index, entry in enumerate(functions if isinstance(functions, list) else ()):
        if isinstance(entry, Mapping):
            weights.append(entry.get("weight"))
            if isinstance(name := entry.get("name"), str):
                places.setdefault(name, []).append(f"[{index}]")
    for name, used in places.items():
        if len(used) > 1:
            mistakes.append(f"{key}: the name {name!r} is used by {', '.join(used)}; names must be unique")
    if weights and all(isinstance(weight, int | float) and not isinstance(weight, bool) for weight in weights):
        total = fsum(weights)
        if not abs(total - 1) <= WEIGHT_TOLERANCE:
            mistakes.append(f"{key}: the weights must sum to 1, they sum to {total:.9g}")
    try:
        contract = Contract.model_validate(document, context=checks)
    except ValidationError as error:
        wrong = msgspec.convert(error.errors(include_url=False), list[_Wrong])
        raise ContractMistaken([f"{each.key}: {each.reason}" for each in wrong] + mistakes) from None
    if mistakes:
        raise ContractMistaken(mistakes)
    return tuple(contract.scoring_function_parameters)


class _Wrong(msgspec.Struct):
    """An error of the models' library."""

    type: str
    loc: tuple[int | str, ...]
    msg: str
    input: Any
    ctx: dict[str, Any] = {}

    @property
    def key(self) -> str:
        """The key as the client wrote it: `scoring_contract.scoring_function_parameters[1].scorer.bash_script`."""
        key = "scoring_contract"
        for part in self.loc:
            if isinstance(part, int):
                key += f"[{part}]"
            elif part not in set(ScorerType):  # the models' own mark of which scorer it is, not a key
                key += f".{part}"
        return f"{key}.type" if self.type.startswith("union_tag") else key

    @property
    def reason(self) -> str:
        if self.type == "string_pattern_mismatch":
            return f"must only contain letters, digits, '_' and '-', got {self.input!r}"
        if self.type == "union_tag_invalid":
            return f"{self.ctx.get('tag')!r} is no type of scorer; expected one of {', '.join(sorted(ScorerType))}"
        return self.msg.removeprefix("Value error, ")
