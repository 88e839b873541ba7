"""Agent files: the keys of one small TOML file, and its reader, whose messages name file, line and key.

The file names environment variables, never their values, so it can be shared and committed. It is read strictly: a key
with a typing error would otherwise become an agent that quietly runs without its time limit or its secret.
"""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from orchestrator.agentkit.agent import NUMBERS
from orchestrator.agentkit.trajectory import FORMATS
from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import AdditionalContext, McpTransport
from orchestrator.core.toml_lines import line_of

#: The `from` that means the agent's printed output, not a file.
OUTPUT: Final = "output"
VERSION: Final = r"[A-Za-z0-9][A-Za-z0-9._+-]*"

_HOST: Final = r"(\$[A-Za-z_][A-Za-z0-9_]*|(\*\.)?[A-Za-z0-9][A-Za-z0-9.-]*(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?)"
#: A value of a form that stands for another.
_PLACE: Final = re.compile(r'"(\{\w*\})"')
#: Our words for pydantic's types of error.
_MESSAGES: Final = {
    "tuple_type": "must be a list",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "missing": "is missing",
}


def _refusal(key: str, message: str) -> PydanticCustomError:
    """Make an error about a key below the table that is being checked; dots lead into tables of it."""
    return PydanticCustomError("agent_file", "{message}", {"message": message, "key": key})


def _compiles(path: str) -> str:
    import jsonpath  # takes longer than all else here

    try:
        jsonpath.compile(path, strict=True)
    except jsonpath.JSONPathError as error:
        raise _refusal("", f"not a JSONPath (RFC 9535): {str(error).splitlines()[0]}: {path}") from None
    return path


def _has_known_places(form: dict[str, Any]) -> dict[str, Any]:
    places = {"{name}", "{command}", "{args}", "{url}", "{headers}"}
    if unknown := set(_PLACE.findall(json.dumps(form))) - places:
        raise _refusal("", f"{min(unknown)} stands for nothing: there are {', '.join(sorted(places))}")
    return form


VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
VariableNames = Annotated[tuple[VariableName, ...], Field(strict=False)]
Text = Annotated[str, Field(pattern=r"\S")]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
JsonPath = Annotated[Text, AfterValidator(_compiles)]
HomePath = Annotated[str, Field(pattern=r"^(~/|/).")]
McpForm = Annotated[dict[str, Any], AfterValidator(_has_known_places)]


class _Strict(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Variables(_Strict):
    """The environment variables that an agent uses: required, optional and secret ones.

    One of each group in `required` is enough. A secret that is not listed as required is optional. `constants` (`set`
    in the file) have the same value for every user.
    """

    required: Annotated[tuple[Annotated[VariableNames, Field(min_length=1)], ...], Field(strict=False)] = ()
    optional: VariableNames = ()
    secret: VariableNames = ()
    constants: dict[VariableName, str] = Field(default_factory=dict, alias="set")

    @field_validator("required", mode="before")
    @classmethod
    def _name_as_group(cls, names: Any) -> Any:
        return [[name] if isinstance(name, str) else name for name in names] if isinstance(names, list) else names

    @property
    def names(self) -> tuple[str, ...]:
        """The variables that come from the user's environment, once each, in the order of the file."""
        groups = (name for group in self.required for name in group)
        return tuple(dict.fromkeys((*groups, *self.optional, *self.secret)))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if both := set(self.constants) & set(self.names):
            raise _refusal(f"set.{min(both)}", "is a constant and comes from the environment too: it can only be one")
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

    @model_validator(mode="before")
    @classmethod
    def _path_as_reading(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given


class Usage(_Strict):
    """The place of the agent's usage: `source` (`from` in the file) is its printed output, or a path in the devbox.

    With `jsonl` each line that is JSON is read by itself, as the only element of a list; with `json` there is one
    document. Of several exit reasons the last counts.
    """

    source: Text = Field(default=OUTPUT, alias="from")
    format: Literal["jsonl", "json"] = "jsonl"
    input_tokens: Reading | None = None
    output_tokens: Reading | None = None
    cached_tokens: Reading | None = None
    cost_usd: Reading | None = None
    turns: Reading | None = None
    exit_reason: JsonPath | None = None

    @property
    def numbers(self) -> Mapping[str, Reading]:
        """The readings of this file, by the name under which each is reported."""
        return {name: reading for name in NUMBERS if (reading := getattr(self, name)) is not None}


class Trajectory(_Strict):
    """The path of the agent's trajectory (`from` in the file), and its format."""

    source: Text = Field(alias="from")
    format: str

    @field_validator("format")
    @classmethod
    def _check_format(cls, name: str) -> str:
        if name not in FORMATS:
            raise _refusal("", f"{name!r} is no format we read; there are {', '.join(sorted(FORMATS))}")
        return name


class Gather(_Strict):
    """Files in the devbox to collect."""

    files: Texts = ()


class Mcp(_Strict):
    """The file in which the agent's program reads the MCP servers of a scenario.

    The table of servers is the whole file, or below the dotted key `servers` of it. Each transport has a form of one
    server, in which `{name}`, `{command}`, `{args}`, `{url}` and `{headers}` stand for its values; one without a form
    cannot be taken. The file is put where the program looks for it, `file`, or where $SWEEP_MCP_FILE says.
    """

    file: HomePath | None = None
    format: Literal["json", "toml"] = "json"
    servers: str = ""
    stdio: McpForm | None = None
    sse: McpForm | None = None
    streamable_http: McpForm | None = Field(default=None, alias="streamable-http")

    def form(self, transport: McpTransport) -> dict[str, Any] | None:
        forms = {McpTransport.STDIO: self.stdio, McpTransport.SSE: self.sse}
        return forms.get(transport, self.streamable_http)


class Skills(_Strict):
    """The folder in the devbox from which the agent's program reads skills; those of a scenario are copied there."""

    folder: HomePath


class Definition(_Strict):
    """One agent file.

    `install` and `run` are shell scripts; `install` writes below $SWEEP_AGENT_PREFIX. An agent with `argument` takes
    its `run` from the command line instead, `--agent NAME:ARGUMENT`, and `argument` is the word for it in messages.
    `time_limit` is in seconds. `ignores` names what the agent does without where a scenario gives it.
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
    mcp: Mcp | None = None
    skills: Skills | None = None
    ignores: Annotated[tuple[Literal["mcp_servers", "skills", "trajectory"], ...], Field(strict=False)] = ()
    time_limit: float | None = Field(default=None, gt=0)
    reference_output: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.run is None and self.argument is None:
            raise _refusal("run", "is missing: the shell command that is the agent")
        if self.run is not None and self.argument is not None:
            raise _refusal("argument", "an agent has either run or argument, not both")
        if self.where == "host" and self.install is not None:
            raise _refusal("install", "a program on this machine is installed by you: only a devbox is installed into")
        for key in ("mcp", "skills") if self.where == "host" else ():
            if getattr(self, key) is not None:
                raise _refusal(key, "is for an agent in the devbox, where MCP servers are started and skills are")
        if self.reference_output and self.name != "oracle":
            raise _refusal("reference_output", "only the agent named oracle may see the reference output")
        for host in self.network.hosts:
            if host.startswith("$") and host[1:] not in {*self.env.names, *self.env.constants}:
                raise _refusal("network.hosts", f"{host} is none of the variables that [env] names")
        return self

    @property
    def digest(self) -> str:
        """A digest of every key that can change how it works: neither the layout nor the description."""
        meaning = self.model_dump(mode="json", exclude={"description", "ignores"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    def unmet(self, context: AdditionalContext) -> Iterator[str]:
        """Name what of a scenario's additional context the agent cannot take, each in a few words."""
        for server in context.mcp_servers if "mcp_servers" not in self.ignores else ():
            form = self.mcp.form(server.transport) if self.mcp else None
            if form is None:
                yield f"the MCP server {server.name} ({server.transport})"
            elif server.headers and '"{headers}"' not in json.dumps(form):
                yield f"the headers of the MCP server {server.name}"
        if context.skills_dir and self.skills is None and "skills" not in self.ignores:
            yield "skills"
        if context.trajectory and "trajectory" not in self.ignores:
            yield "a trajectory to start from"

    def with_argument(self, argument: str) -> "Definition":
        """Fill in the argument of `NAME:ARGUMENT`."""
        return self.model_copy(update={"run": argument, "argument": None})

    def with_version(self, version: str) -> "Definition":
        """Replace the version, for `NAME@VERSION`."""
        return self.model_copy(update={"version": version})


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
        raise UsageError(f"{file}{line_of(text, ['name'])}: key name: must be {name!r}, as the file is, or left out")
    try:
        return Definition.model_validate(data)
    except ValidationError as error:
        problems = [f"{file}{_describe(text, data, problem)}" for problem in error.errors(include_url=False)]
        raise UsageError("\n".join(problems)) from error


def _describe(text: str, data: Mapping[str, Any], problem: ErrorDetails) -> str:
    """The line and key of one problem, and its message."""
    key = problem.get("ctx", {}).get("key", "") if problem["type"] == "agent_file" else ""
    given: Any = data
    location: list[str] = []
    for part in (*problem["loc"], *str(key).split(".")) if key else problem["loc"]:
        if not isinstance(given, dict | list):
            break  # the rest was added by validation: a short form in the file stands for a table
        location.append(str(part))
        given = (given if isinstance(given, dict) else dict(enumerate(given))).get(part)
    message = _MESSAGES.get(problem["type"], problem["msg"])
    if problem["type"] == "extra_forbidden":
        table: type[BaseModel] = Definition
        for word in location[:-1]:
            fields = (field for name, field in table.model_fields.items() if word == (field.alias or name))
            table = next((found for field in fields for found in _models(field.annotation)), table)
        keys = [field.alias or name for name, field in table.model_fields.items()]
        near = difflib.get_close_matches(location[-1], keys, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(keys)}"
        message = f"there is no such key; {hint}"
    return f"{line_of(text, location)}: key {'.'.join(location)}: {message}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
