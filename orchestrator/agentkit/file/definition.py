"""A declarative agent as data: the keys of one small TOML file.

The file names environment variables, never their values, so it can be shared and committed. It is read strictly: a key
with a typing error would otherwise become an agent that quietly runs without its time limit or its secret.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.agentkit.agent import NUMBERS
from orchestrator.agentkit.trajectory import FORMATS

#: The `from` that means the agent's printed output, not a file.
OUTPUT: Final = "output"
VERSION: Final = r"[A-Za-z0-9][A-Za-z0-9._+-]*"

_HOST: Final = r"(\$[A-Za-z_][A-Za-z0-9_]*|(\*\.)?[A-Za-z0-9][A-Za-z0-9.-]*(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?)"


def refusal(key: str, message: str) -> PydanticCustomError:
    """Make an error about a key below the table that is being checked; dots lead into tables of it."""
    return PydanticCustomError("agent_file", "{message}", {"message": message, "key": key})


def _compiles(path: str) -> str:
    import jsonpath  # takes longer than all else here

    try:
        jsonpath.compile(path, strict=True)
    except jsonpath.JSONPathError as error:
        raise refusal("", f"not a JSONPath (RFC 9535): {str(error).splitlines()[0]}: {path}") from None
    return path


def _is_format(name: str) -> str:
    if name not in FORMATS:
        raise refusal("", f"{name!r} is no format we read; there are {', '.join(sorted(FORMATS))}")
    return name


def _one_of(names: Any) -> Any:
    return [[name] if isinstance(name, str) else name for name in names] if isinstance(names, list) else names


def _with_defaults(reading: Any) -> Any:
    return {"path": reading} if isinstance(reading, str) else reading


VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
VariableNames = Annotated[tuple[VariableName, ...], Field(strict=False)]
Text = Annotated[str, Field(pattern=r"\S")]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
JsonPath = Annotated[Text, AfterValidator(_compiles)]


class _Strict(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Variables(_Strict):
    """The environment variables that an agent uses: required, optional and secret ones.

    One of each group in `required` is enough. A secret that is not listed as required is optional. `constants` (`set`
    in the file) have the same value for every user.
    """

    required: Annotated[
        tuple[Annotated[VariableNames, Field(min_length=1)], ...], BeforeValidator(_one_of), Field(strict=False)
    ] = ()
    optional: VariableNames = ()
    secret: VariableNames = ()
    constants: dict[VariableName, str] = Field(default_factory=dict, alias="set")

    @property
    def names(self) -> tuple[str, ...]:
        """The variables that come from the user's environment, once each, in the order of the file."""
        groups = (name for group in self.required for name in group)
        return tuple(dict.fromkeys((*groups, *self.optional, *self.secret)))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if both := set(self.constants) & set(self.names):
            raise refusal(f"set.{min(both)}", "is a constant and comes from the environment too: it can only be one")
        return self


class Model(_Strict):
    """The agent's model, and the variable that gets it beside SWEEP_MODEL."""

    required: bool = False
    default: Text | None = None
    variable: VariableName | None = None


class Network(_Strict):
    """The hosts that the agent must reach from its devbox: `name`, `*.name`, `name:port`, or `$VARIABLE` with a URL."""

    hosts: Annotated[tuple[Annotated[str, Field(pattern=f"^{_HOST}$")], ...], Field(strict=False)] = ()


class Reading(_Strict):
    """The JSONPath of a number, and how several are combined."""

    path: JsonPath
    combine: Literal["sum", "last", "max", "count"] = "sum"


Number = Annotated[Reading, BeforeValidator(_with_defaults)]


class Usage(_Strict):
    """The place of the agent's usage: `source` (`from` in the file) is its printed output, or a path in the devbox.

    With `jsonl` each line that is JSON is read by itself, as the only element of a list; with `json` there is one
    document. Of several exit reasons the last counts.
    """

    source: Text = Field(default=OUTPUT, alias="from")
    format: Literal["jsonl", "json"] = "jsonl"
    input_tokens: Number | None = None
    output_tokens: Number | None = None
    cached_tokens: Number | None = None
    cost_usd: Number | None = None
    turns: Number | None = None
    exit_reason: JsonPath | None = None

    @property
    def numbers(self) -> Mapping[str, Reading]:
        """The readings of this file, by the name under which each is reported."""
        return {name: reading for name in NUMBERS if (reading := getattr(self, name)) is not None}


class Trajectory(_Strict):
    """The path of the agent's trajectory (`from` in the file), and its format."""

    source: Text = Field(alias="from")
    format: Annotated[str, AfterValidator(_is_format)]


class Gather(_Strict):
    """Files in the devbox to collect."""

    files: Texts = ()


class Definition(_Strict):
    """One agent file.

    `install` and `run` are shell scripts; `install` writes below $SWEEP_AGENT_PREFIX. An agent with `argument` takes
    its `run` from the command line instead, `--agent NAME:ARGUMENT`, and `argument` is the word for it in messages.
    `time_limit` is in seconds.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    description: str = ""
    version: Annotated[str, Field(pattern=f"^{VERSION}$")] | None = None
    where: Literal["devbox", "host"] = "devbox"
    install: Text | None = None
    run: Text | None = None
    argument: str | None = None
    env: Variables = Variables()
    model: Model = Model()
    network: Network = Network()
    usage: Usage | None = None
    trajectory: Trajectory | None = None
    gather: Gather = Gather()
    time_limit: float | None = Field(default=None, gt=0)
    reference_output: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.run is None and self.argument is None:
            raise refusal("run", "is missing: the shell command that is the agent")
        if self.run is not None and self.argument is not None:
            raise refusal("argument", "an agent has either run or argument, not both")
        if self.where == "host" and self.install is not None:
            raise refusal("install", "a program on this machine is installed by you: only a devbox is installed into")
        if self.reference_output and self.name != "oracle":
            raise refusal("reference_output", "only the agent named oracle may see the reference output")
        for host in self.network.hosts:
            if host.startswith("$") and host[1:] not in {*self.env.names, *self.env.constants}:
                raise refusal("network.hosts", f"{host} is none of the variables that [env] names")
        return self

    @property
    def digest(self) -> str:
        """A digest of every key that can change a result: neither the layout nor the description."""
        meaning = self.model_dump(mode="json", exclude={"description"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    def with_argument(self, argument: str) -> "Definition":
        """Fill in the argument of `NAME:ARGUMENT`."""
        return self.model_copy(update={"run": argument, "argument": None})

    def with_version(self, version: str) -> "Definition":
        """Replace the version, for `NAME@VERSION`."""
        return self.model_copy(update={"version": version})
