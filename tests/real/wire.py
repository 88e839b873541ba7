"""Four protocols of model servers: what a request asks, and how a reply is written, whole or as a stream of events."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """What the model says: a text or a call."""

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


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"


def _halves(text: str) -> tuple[str, str]:
    """Two parts, so that whoever reads a stream must put it together."""
    return text[: len(text) // 2], text[len(text) // 2 :]


def _document(document: Json) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


def _events(events: Iterable[Json], *, is_named: bool = False, last: bytes = b"") -> Response:
    """A stream of server-sent events; `is_named` repeats the type of each as its name."""
    lines = []
    for event in events:
        name = b"event: " + event["type"].encode() + b"\n" if is_named else b""
        lines.append(name + b"data: " + orjson.dumps(event) + b"\n\n")
    return Response(b"".join(lines) + last, media_type="text/event-stream")


class Messages:
    """Anthropic's: `input_tokens` are those that were not in the cache."""

    def read(self, body: Json, path: str) -> Ask:
        del path
        spoken = [message for message in body["messages"] if message["role"] == "assistant"]
        blocks = [block for message in spoken for block in message["content"] if isinstance(block, dict)]
        tools = body.get("tools", ())
        return Ask(
            model=body["model"],
            is_stream=bool(body.get("stream")),
            tools=tuple(Tool(name=tool["name"], schema=tool.get("input_schema", {})) for tool in tools),
            calls=sum(block["type"] == "tool_use" for block in blocks),
            body=body,
        )

    def answer(self, ask: Ask, reply: Reply) -> Response:
        block = self._block(reply)
        reason = "end_turn" if reply.call is None else "tool_use"
        message = {
            "id": _id("msg"),
            "type": "message",
            "role": "assistant",
            "model": ask.model,
            "content": [block],
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": self._usage(reply.usage),
        }
        if not ask.is_stream:
            return _document(message)
        return _events(self._stream(message, block, reply), is_named=True)

    def _stream(self, message: Json, block: Json, reply: Reply) -> Iterator[Json]:
        started = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 1}}
        yield {"type": "message_start", "message": started}
        empty = {**block, "text": ""} if reply.call is None else {**block, "input": {}}
        yield {"type": "content_block_start", "index": 0, "content_block": empty}
        for part in _halves(reply.text if reply.call is None else reply.call.text):
            delta = (
                {"type": "text_delta", "text": part}
                if reply.call is None
                else {"type": "input_json_delta", "partial_json": part}
            )
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}
        ended = {"stop_reason": message["stop_reason"], "stop_sequence": None}
        yield {"type": "message_delta", "delta": ended, "usage": {"output_tokens": reply.usage.output}}
        yield {"type": "message_stop"}

    def _block(self, reply: Reply) -> Json:
        if reply.call is None:
            return {"type": "text", "text": reply.text}
        return {"type": "tool_use", "id": _id("toolu"), "name": reply.call.name, "input": reply.call.arguments}

    def _usage(self, usage: Usage) -> Json:
        return {
            "input_tokens": usage.input - usage.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached,
            "output_tokens": usage.output,
        }


class Chat:
    """OpenAI's older one, which most others speak too."""

    def read(self, body: Json, path: str) -> Ask:
        del path
        spoken = [message for message in body["messages"] if message["role"] == "assistant"]
        functions = [tool["function"] for tool in body.get("tools") or () if tool["type"] == "function"]
        return Ask(
            model=body["model"],
            is_stream=bool(body.get("stream")),
            tools=tuple(Tool(name=tool["name"], schema=tool.get("parameters", {})) for tool in functions),
            calls=sum(len(message.get("tool_calls") or ()) for message in spoken),
            body=body,
        )

    def answer(self, ask: Ask, reply: Reply) -> Response:
        head = {"id": _id("chatcmpl"), "created": CREATED, "model": ask.model}
        reason = "stop" if reply.call is None else "tool_calls"
        if ask.is_stream:
            chunk = {**head, "object": "chat.completion.chunk"}
            return _events(self._stream(chunk, reason, reply), last=b"data: [DONE]\n\n")
        message: Json = {"role": "assistant", "content": reply.text or None}
        if reply.call is not None:
            message["tool_calls"] = [self._call(reply.call)]
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return _document({**head, "object": "chat.completion", "choices": [choice], "usage": self._usage(reply.usage)})

    def _stream(self, chunk: Json, reason: str, reply: Reply) -> Iterator[Json]:
        def chosen(delta: Json, finish: str | None = None) -> Json:
            return {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        yield chosen({"role": "assistant", "content": "" if reply.call is None else None})
        if reply.call is None:
            for part in _halves(reply.text):
                yield chosen({"content": part})
        else:
            first, second = _halves(reply.call.text)
            call = self._call(reply.call)
            call["function"]["arguments"] = first
            yield chosen({"tool_calls": [{"index": 0, **call}]})
            yield chosen({"tool_calls": [{"index": 0, "function": {"arguments": second}}]})
        yield chosen({}, reason)
        yield {**chunk, "choices": [], "usage": self._usage(reply.usage)}

    def _call(self, call: Call) -> Json:
        return {"id": _id("call"), "type": "function", "function": {"name": call.name, "arguments": call.text}}

    def _usage(self, usage: Usage) -> Json:
        return {
            "prompt_tokens": usage.input,
            "completion_tokens": usage.output,
            "total_tokens": usage.input + usage.output,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


class Responses:
    """OpenAI's newer one."""

    def read(self, body: Json, path: str) -> Ask:
        del path
        items = body["input"] if isinstance(body["input"], list) else []
        functions = [tool for tool in body.get("tools") or () if tool["type"] == "function"]
        return Ask(
            model=body["model"],
            is_stream=bool(body.get("stream")),
            tools=tuple(Tool(name=tool["name"], schema=tool.get("parameters", {})) for tool in functions),
            calls=sum(str(item.get("type", "")).endswith("_call") for item in items),
            body=body,
        )

    def answer(self, ask: Ask, reply: Reply) -> Response:
        item = self._item(reply)
        response = {
            "id": _id("resp"),
            "object": "response",
            "created_at": CREATED,
            "status": "completed",
            "model": ask.model,
            "output": [item],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "usage": self._usage(reply.usage),
        }
        if not ask.is_stream:
            return _document(response)
        stream = self._stream(response, item, reply)
        return _events(({**event, "sequence_number": n} for n, event in enumerate(stream)), is_named=True)

    def _stream(self, response: Json, item: Json, reply: Reply) -> Iterator[Json]:
        started = {**response, "status": "in_progress", "output": [], "usage": None}
        yield {"type": "response.created", "response": started}
        place = {"output_index": 0, "item_id": item["id"]}
        if reply.call is None:
            empty = {**item, "status": "in_progress", "content": []}
            part = {"type": "output_text", "text": "", "annotations": []}
            yield {"type": "response.output_item.added", "output_index": 0, "item": empty}
            yield {"type": "response.content_part.added", **place, "content_index": 0, "part": part}
            for half in _halves(reply.text):
                yield {"type": "response.output_text.delta", **place, "content_index": 0, "delta": half}
            yield {"type": "response.output_text.done", **place, "content_index": 0, "text": reply.text}
            whole = {**part, "text": reply.text}
            yield {"type": "response.content_part.done", **place, "content_index": 0, "part": whole}
        else:
            empty = {**item, "status": "in_progress", "arguments": ""}
            yield {"type": "response.output_item.added", "output_index": 0, "item": empty}
            for half in _halves(reply.call.text):
                yield {"type": "response.function_call_arguments.delta", **place, "delta": half}
            yield {"type": "response.function_call_arguments.done", **place, "arguments": reply.call.text}
        yield {"type": "response.output_item.done", "output_index": 0, "item": item}
        yield {"type": "response.completed", "response": response}

    def _item(self, reply: Reply) -> Json:
        if reply.call is None:
            text = {"type": "output_text", "text": reply.text, "annotations": []}
            return {
                "type": "message",
                "id": _id("msg"),
                "status": "completed",
                "role": "assistant",
                "content": [text],
            }
        return {
            "type": "function_call",
            "id": _id("fc"),
            "call_id": _id("call"),
            "status": "completed",
            "name": reply.call.name,
            "arguments": reply.call.text,
        }

    def _usage(self, usage: Usage) -> Json:
        return {
            "input_tokens": usage.input,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.input + usage.output,
        }


class Gemini:
    """Google's: the model and whether it streams are in the path."""

    def read(self, body: Json, path: str) -> Ask:
        spoken = [content for content in body["contents"] if content.get("role") == "model"]
        declared = [one for tool in body.get("tools") or () for one in tool.get("functionDeclarations", ())]
        return Ask(
            model=path.rpartition("/")[2].partition(":")[0],
            is_stream=path.endswith(":streamGenerateContent"),
            tools=tuple(
                Tool(name=one["name"], schema=one.get("parametersJsonSchema") or one.get("parameters") or {})
                for one in declared
            ),
            calls=sum("functionCall" in part for content in spoken for part in content["parts"]),
            body=body,
        )

    def answer(self, ask: Ask, reply: Reply) -> Response:
        part: Json = {"text": reply.text}
        if reply.call is not None:
            part = {"functionCall": {"name": reply.call.name, "args": reply.call.arguments}}
        document = {
            "candidates": [{"index": 0, "content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}],
            "usageMetadata": {
                "promptTokenCount": reply.usage.input,
                "cachedContentTokenCount": reply.usage.cached,
                "candidatesTokenCount": reply.usage.output,
                "totalTokenCount": reply.usage.input + reply.usage.output,
            },
            "modelVersion": ask.model,
            "responseId": _id("r"),
        }
        return _events([document]) if ask.is_stream else _document(document)


_ENDINGS: Final[Mapping[str, Wire]] = {
    "/messages": Messages(),
    "/chat/completions": Chat(),
    "/responses": Responses(),
    ":generateContent": Gemini(),
    ":streamGenerateContent": Gemini(),
}
_MODELS: Final = {
    "object": "list",
    "data": [{"id": "scripted", "object": "model", "created": CREATED, "owned_by": "us"}],
}
_ASIDES: Final[Mapping[str, Callable[[], Response]]] = {
    "/messages/count_tokens": lambda: _document({"input_tokens": 100}),
    ":countTokens": lambda: _document({"totalTokens": 100}),
    "/models": lambda: _document(_MODELS),
}


def protocol_of(path: str) -> Wire | None:
    """The protocol of a path, with or without the version in front."""
    return next((wire for ending, wire in _ENDINGS.items() if path.endswith(ending)), None)


def aside(path: str) -> Response | None:
    """The answer to what is asked beside the conversation."""
    return next((answer() for ending, answer in _ASIDES.items() if path.endswith(ending)), None)
