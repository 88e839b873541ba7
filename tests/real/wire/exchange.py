"""The common parts of the protocols of a model server: a request, and a reply, whole or as a stream of events."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson
from starlette.responses import Response

Json = dict[str, Any]
#: A moment for the fields that want one; seconds.
CREATED: Final = 1_700_000_000
#: The names by which agents offer a shell, in lower case.
SHELLS: Final = (
    "bash",
    "shell",
    "exec_command",
    "shell_command",
    "run_shell_command",
    "execute_bash",
    "terminal",
    "developer__shell",
)
#: What the parameter that takes the command is called.
COMMANDS: Final = ("command", "cmd", "script")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens; `input` includes those that were `cached`, as all protocols but Anthropic's count."""

    input: int
    cached: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a tool."""

    name: str
    arguments: Json

    @property
    def text(self) -> str:
        return orjson.dumps(self.arguments).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply of the model: a text or a call."""

    usage: Usage
    text: str = ""
    call: Call | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool that a request offers, with the JSON schema of its arguments."""

    name: str
    schema: Json

    def called_with(self, command: str) -> Call:
        """A call that runs a shell command: what else the schema requires is filled in."""
        properties = self.schema.get("properties", {})
        key = next(name for name in COMMANDS if name in properties)
        is_list = _type(properties[key]) == "array"
        arguments: Json = {name: _filler(properties.get(name, {})) for name in self.schema.get("required", ())}
        arguments[key] = ["bash", "-lc", command] if is_list else command
        return Call(name=self.name, arguments=arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request: `calls` counts the calls of tools that the model has made in it before, `body` is all of it."""

    model: str
    is_stream: bool
    tools: tuple[Tool, ...]
    calls: int
    body: Json

    @property
    def shell(self) -> Tool | None:
        return next((tool for tool in self.tools if tool.name.lower() in SHELLS), None)

    def says(self, part: str) -> bool:
        return orjson.dumps(part)[1:-1] in orjson.dumps(self.body)


class Wire(Protocol):
    """One protocol."""

    def read(self, body: Json, path: str) -> Ask: ...

    def answer(self, ask: Ask, reply: Reply) -> Response: ...


def _type(schema: Json) -> str:
    kind = schema.get("type", "")
    return str(kind if isinstance(kind, str) else kind[0]).lower()


def _filler(schema: Json) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    return {"string": "mend it", "boolean": False, "integer": 60, "number": 60, "array": []}.get(_type(schema), {})


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"


def in_halves(text: str) -> tuple[str, str]:
    """Two parts, so that the reader of a stream must put them together."""
    return text[: len(text) // 2], text[len(text) // 2 :]


def as_document(document: Json) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


def as_events(events: Iterable[Json], *, is_named: bool = False, last: bytes = b"") -> Response:
    """A stream of server-sent events; `is_named` repeats the type of each as its name."""
    lines = []
    for event in events:
        name = b"event: " + event["type"].encode() + b"\n" if is_named else b""
        lines.append(name + b"data: " + orjson.dumps(event) + b"\n\n")
    return Response(b"".join(lines) + last, media_type="text/event-stream")
