"""A scoring contract, read once and strictly into records; whoever runs scorers never sees a key that is missing.

Every mistake of a contract is told at once, by the key the client wrote, because a benchmark of hundreds of scenarios
is mended in one go or not at all. The rules are those of the published API document, section "ScoringFunction"; where
it leaves a field optional that a scorer cannot do without (a script, a command), we require it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import fsum
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from orchestrator.service.environments.requirements import check_requirements
from orchestrator.service.errors import BadRequest

WEIGHT_TOLERANCE: Final = 1e-6
#: A single environment variable holds 128 KiB on Linux, its name included.
MAX_PARAMS: Final = 120 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """What a contract alone cannot tell: which custom types are registered, and why a Python constraint is not met."""

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


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or path.endswith("/"):
        raise ValueError(f"expected a file's path relative to the working directory, without '..', got {path!r}")
    return path


def _small(params: Any) -> Any:
    if len(orjson.dumps(params)) > MAX_PARAMS:
        raise ValueError(
            f"must be at most {MAX_PARAMS} bytes of JSON: it reaches the scorer as an environment variable"
        )
    return params


def _installable(requirements: str) -> str:
    check_requirements(requirements)
    return requirements


def _registered(custom_type: str, info: ValidationInfo) -> str:
    checks: Checks | None = info.context
    if checks is not None and custom_type not in checks.custom_types:
        known = ", ".join(sorted(checks.custom_types)) or "none"
        raise ValueError(f"no scorer of type {custom_type!r} is registered (registered: {known})")
    return custom_type


def _met(constraint: str, info: ValidationInfo) -> str:
    checks: Checks | None = info.context
    if checks is not None and (problem := checks.python_problem(constraint)):
        raise ValueError(problem)
    return constraint


Text = Annotated[str, AfterValidator(_printable)]
Said = Annotated[Text, AfterValidator(_said)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class BashScript(_Record):
    """Prints `score=<number>`."""

    type: Literal["bash_script_scorer"]
    bash_script: Said


class PythonScript(_Record):
    """Prints a bare number as its last line; runs in an environment with its requirements."""

    type: Literal["python_script_scorer"]
    python_script: Said
    requirements_contents: Annotated[Text, AfterValidator(_installable)] | None = None
    python_version_constraint: Annotated[Text, AfterValidator(_met)] | None = None


class CommandScorer(_Record):
    """Passes with exit status 0."""

    type: Literal["command_scorer"]
    command: Said


class TestFile(_Record):
    """A file that appears in the working directory only when it is time to score."""

    __test__ = False
    file_path: Annotated[Said, AfterValidator(_inside)]
    file_contents: Text | None = None


class TestBased(_Record):
    """Writes its files, then passes with exit status 0 of its command."""

    __test__ = False
    type: Literal["test_based_scorer"]
    test_command: Said
    test_files: list[TestFile] | None = None


class Custom(_Record):
    """A registered bash script that reads its parameters from `$RL_SCORER_CONTEXT`."""

    type: Literal["custom_scorer"]
    custom_scorer_type: Annotated[Said, AfterValidator(_registered)]
    scorer_params: Annotated[Any, AfterValidator(_small)] = None


class AstGrep(_Record):
    """Passes when the pattern is found."""

    type: Literal["ast_grep_scorer"]
    pattern: Said
    search_directory: Said
    lang: Text | None = None


Scorer = Annotated[
    BashScript | PythonScript | CommandScorer | TestBased | Custom | AstGrep, Field(discriminator="type")
]


class Function(_Record):
    """One scoring function: its weight is its share of the total."""

    name: Annotated[str, Field(pattern=r"\A[a-zA-Z0-9_-]+\z")]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    scorer: Scorer


class Contract(_Record):
    """All functions of a scenario, in the order they run."""

    scoring_function_parameters: Annotated[list[Function], Field(min_length=1)]


class ContractMistaken(BadRequest):
    """The contract cannot be used; `mistakes` are the reasons, each opening with its key."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__(f"The scoring contract is not valid: {'; '.join(mistakes)}.")
        self.mistakes = mistakes


def read_contract(document: Any, checks: Checks | None = None) -> tuple[Function, ...]:
    """The functions of a contract as sent, checked against the world too if `checks` are given.

    Raises ContractMistaken naming every wrong key.
    """
    mistakes = list(_disagreements(document))
    try:
        contract = Contract.model_validate(document, context=checks)
    except ValidationError as error:
        wrong = [f"{_key(each['loc'], each['type'])}: {_words(each)}" for each in error.errors(include_url=False)]
        raise ContractMistaken(wrong + mistakes) from None
    if mistakes:
        raise ContractMistaken(mistakes)
    return tuple(contract.scoring_function_parameters)


def _disagreements(document: Any) -> Iterator[str]:
    """What is wrong between functions rather than in one."""
    key = "scoring_contract.scoring_function_parameters"
    functions = document.get("scoring_function_parameters") if isinstance(document, Mapping) else None
    entries = [entry for entry in functions if isinstance(entry, Mapping)] if isinstance(functions, list) else []
    names = Counter(name for entry in entries if isinstance(name := entry.get("name"), str))
    for name in (name for name, count in names.items() if count > 1):
        places = ", ".join(f"[{index}]" for index, entry in enumerate(functions or []) if _named(entry, name))
        yield f"{key}: the name {name!r} is used by {places}; names must be unique"
    weights = [entry.get("weight") for entry in entries]
    if weights and all(isinstance(weight, int | float) and not isinstance(weight, bool) for weight in weights):
        total = fsum(weight for weight in weights if isinstance(weight, int | float))
        if not abs(total - 1) <= WEIGHT_TOLERANCE:
            yield f"{key}: the weights must sum to 1, they sum to {total:.9g}"


def _named(entry: Any, name: str) -> bool:
    return isinstance(entry, Mapping) and entry.get("name") == name


_TYPES: Final = frozenset(
    {
        "bash_script_scorer",
        "python_script_scorer",
        "command_scorer",
        "test_based_scorer",
        "custom_scorer",
        "ast_grep_scorer",
    }
)


def _key(location: tuple[int | str, ...], kind: str) -> str:
    """`scoring_contract.scoring_function_parameters[1].scorer.bash_script`: the key as the client wrote it."""
    key = "scoring_contract"
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
        elif part not in _TYPES:  # the models' own mark of which scorer it is, not a key
            key += f".{part}"
    return f"{key}.type" if kind.startswith("union_tag") else key


def _words(problem: Any) -> str:
    message: str = problem["msg"]
    if problem["type"] == "string_pattern_mismatch":
        return f"must only contain letters, digits, '_' and '-', got {problem['input']!r}"
    if problem["type"] == "union_tag_invalid":
        return f"{problem['ctx']['tag']!r} is no type of scorer; expected one of {', '.join(sorted(_TYPES))}"
    return message.removeprefix("Value error, ")
