"""Gemini CLI's sessions: JSON lines below ~/.gemini/tmp, of which a later one with the same id replaces the earlier.

Lines with `$set` change the session as a whole; the first of them has the message that sets the scene. Earlier releases
wrote one JSON document with a list of the same messages, and it is read too.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import arguments, integer, json_document, json_lines, text


def read(files: Sequence[Path]) -> Iterator[Event]:
    """The conversation of every file. Raises TrajectoryError."""
    for path in files:
        lines = [json_document(path)] if path.suffix == ".json" else [line for _, line in json_lines(path)]
        for message in _messages(lines):
            yield from _events(message)


def _messages(lines: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Each message once, as it was at last, in the order of the conversation."""
    messages: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        listed = line.get("$set", line).get("messages")
        for message in listed if listed is not None else [line]:
            if "id" in message and "type" in message:
                messages[message["id"]] = message
    yield from messages.values()


def _events(message: Mapping[str, Any]) -> Iterator[Event]:
    if message["type"] == "gemini":
        yield _answer(message)
        for call in message.get("toolCalls") or ():
            yield ToolResult(call_id=call["id"], content=_result(call))
    elif message["type"] == "user" and not _is_result(message.get("content")):
        yield Step(source="user", message=text(message.get("content")), timestamp=message.get("timestamp"))


def _answer(message: Mapping[str, Any]) -> Step:
    thoughts = message.get("thoughts") or ()
    return Step(
        source="agent",
        message=text(message.get("content")),
        timestamp=message.get("timestamp"),
        model=message.get("model"),
        reasoning="\n".join(f"{thought.get('subject', '')}: {thought.get('description', '')}" for thought in thoughts),
        calls=tuple(
            ToolCall(id=call["id"], name=call["name"], arguments=arguments(call.get("args")))
            for call in message.get("toolCalls") or ()
        ),
        metrics=_metrics(message.get("tokens")),
    )


def _is_result(content: Any) -> bool:
    """What the model is told of a call is told in the user's name; it stands with the call already."""
    return isinstance(content, list) and bool(content) and all("functionResponse" in part for part in content)


def _result(call: Mapping[str, Any]) -> str:
    parts = call.get("result")
    if not isinstance(parts, list):
        return text(parts or call.get("resultDisplay"))
    responses = [part.get("functionResponse", {}).get("response", part) for part in parts]
    return text([response.get("output", response.get("error", response)) for response in responses])


def _metrics(tokens: Mapping[str, Any] | None) -> Metrics | None:
    """What the model thought is not among its `output`."""
    if tokens is None:
        return None
    return Metrics(
        prompt_tokens=integer(tokens.get("input")),
        completion_tokens=(integer(tokens.get("output")) or 0) + (integer(tokens.get("thoughts")) or 0),
        cached_tokens=integer(tokens.get("cached")),
    )
