"""A declarative agent as data: what one small TOML file may say, and how it says no.

The file names environment variables, never their values, so it can be shared and committed. It is read strictly: a key
with a typing error would otherwise become an agent that quietly runs without its time limit or its secret.
"""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from orchestrator.errors import UsageError

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Script = Annotated[str, Field(pattern=r"\S")]

_TABLE = re.compile(r"^\s*\[\s*(?P<table>[\w.-]+)\s*\]")
_KEY = re.compile(r"^\s*(?P<key>[\w.-]+)\s*=")


class _Strict(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Variables(_Strict):
    """The environment variables an agent uses: those it cannot do without, those it may have, and which are secret.

    A secret need not be listed again as required or optional: it is optional then.
    """

    required: tuple[VariableName, ...] = Field(default=(), strict=False)
    optional: tuple[VariableName, ...] = Field(default=(), strict=False)
    secret: tuple[VariableName, ...] = Field(default=(), strict=False)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, once each, in the order of the file."""
        return tuple(dict.fromkeys((*self.required, *self.optional, *self.secret)))


class Definition(_Strict):
    """One agent file.

    `install` and `run` are shell scripts for the devbox. An agent with `argument` takes its `run` from the command line
    instead, `--agent NAME:ARGUMENT`, and `argument` is the word for it in messages. `time_limit` is in seconds.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    description: str = ""
    where: Literal["devbox", "host"] = "devbox"
    install: Script | None = None
    run: Script | None = None
    argument: str | None = None
    env: Variables = Variables()
    time_limit: float | None = Field(default=None, gt=0)
    reference_output: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.where == "host":
            raise _refusal(
                "where",
                'agents that run on this host are not supported in agent files yet: use where = "devbox", '
                "or a Python agent (--agent ./file.py:CLASS)",
            )
        if self.run is None and self.argument is None:
            raise _refusal("run", "is missing: the shell command that is the agent")
        if self.run is not None and self.argument is not None:
            raise _refusal("argument", "an agent has either run or argument, not both")
        if self.reference_output and self.name != "oracle":
            raise _refusal("reference_output", "only the agent named oracle may see the reference output")
        return self

    @property
    def digest(self) -> str:
        """Changes when something does that can change a result: neither layout nor the description."""
        meaning = self.model_dump(mode="json", exclude={"description"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    def with_argument(self, argument: str) -> "Definition":
        """The agent that `NAME:ARGUMENT` means."""
        return self.model_copy(update={"run": argument, "argument": None})


def read_definition(path: Path) -> Definition:
    """Read an agent file; its name is the file's. Raises UsageError that names file, line and key."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: an agent file is UTF-8 text: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: the agent file cannot be read: {error.strerror}") from error
    return parse_definition(text, name=path.stem, file=str(path))


def parse_definition(text: str, *, name: str, file: str) -> Definition:
    """Make a definition of the text of an agent file. Raises UsageError that names file, line and key."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: not valid TOML: {error}") from error
    if data.setdefault("name", name) != name:
        raise UsageError(f"{file}{_line(text, ('name',))}: key name: must be {name!r}, as the file is, or left out")
    try:
        return Definition.model_validate(data)
    except ValidationError as error:
        problems = [f"{file}{_describe(text, problem)}" for problem in error.errors(include_url=False)]
        raise UsageError("\n".join(problems)) from error


def _refusal(key: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("agent_file", "{message}", {"message": message, "key": key})


def _describe(text: str, problem: ErrorDetails) -> str:
    """The line and key of one problem, and what is wrong with it."""
    location = tuple(str(part) for part in problem["loc"])
    if not location:
        location = (str(problem.get("ctx", {}).get("key", "")),)
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        message = f"there is no such key{_nearest(location)}"
    return f"{_line(text, location)}: key {'.'.join(location)}: {message}"


def _nearest(location: tuple[str, ...]) -> str:
    model: type[BaseModel] = Variables if location[0] == "env" and len(location) > 1 else Definition
    near = difflib.get_close_matches(location[-1], model.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(model.model_fields)}"


def _line(text: str, location: tuple[str, ...]) -> str:
    """Where a key stands, as `, line 7`; empty where that cannot be told, e.g. for a key that is missing."""
    lines = _lines(text)
    for length in range(len(location), 0, -1):
        found = lines.get(".".join(location[:length]))
        if found is not None:
            return f", line {found}"
    return ""


def _lines(text: str) -> Mapping[str, int]:
    """The line of each table and key, by dotted name. Approximate: lines inside multi-line strings count as well."""
    lines: dict[str, int] = {}
    prefix = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if table := _TABLE.match(line):
            lines.setdefault(table["table"], number)
            prefix = table["table"] + "."
        elif key := _KEY.match(line):
            lines.setdefault(prefix + key["key"], number)
    return lines
