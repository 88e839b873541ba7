"""Gemini CLI's sessions: JSON lines below ~/.gemini/tmp; a later line replaces an earlier one with the same id.

Lines with `$set` change the session as a whole; the first of them has the opening message. Earlier releases wrote one
JSON document with a list of the same messages; it is read too.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import arguments, integer, json_document, json_lines, text


def read(files: Sequence[Path]) -> Iterator[Event]:
    """Read the conversation of every file. Raises TrajectoryError."""
    for path in files:
        messages: dict[str, Mapping[str, Any]] = {}  # each once, in its last state, in the conversation's order
        for line in [json_document(path)] if path.suffix == ".json" else json_lines(path):
            listed = line.get("$set", line).get("messages")
            for message in listed if listed is not None else [line]:
                if "id" in message and "type" in message:
                    messages[message["id"]] = message
        for message in messages.values():
            yield from _events(message)


def _events(message: Mapping[str, Any]) -> Iterator[Event]:
    content, calls = message.get("content"), message.get("toolCalls") or ()
    if message["type"] == "user":
        # The model is told the result of a call in the user's name; the result is listed with the call already.
        if not (isinstance(content, list) and content and all("functionResponse" in part for part in content)):
            yield Step(source="user", message=text(content), timestamp=message.get("timestamp"))
    elif message["type"] == "gemini":
        thoughts, tokens = message.get("thoughts") or (), message.get("tokens")
        yield Step(
            source="agent",
            message=text(content),
            timestamp=message.get("timestamp"),
            model=message.get("model"),
            reasoning="\n".join(f"{each.get('subject', '')}: {each.get('description', '')}" for each in thoughts),
            calls=tuple(
                ToolCall(id=call["id"], name=call["name"], arguments=arguments(call.get("args"))) for call in calls
            ),
            metrics=None
            if tokens is None
            else Metrics(
                prompt_tokens=integer(tokens.get("input")),
                completion_tokens=(integer(tokens.get("output")) or 0) + (integer(tokens.get("thoughts")) or 0),
                cached_tokens=integer(tokens.get("cached")),
            ),
        )
        for call in calls:
            yield ToolResult(call_id=call["id"], content=_result(call))


def _result(call: Mapping[str, Any]) -> str:
    parts = call.get("result")
    if not isinstance(parts, list):
        return text(parts or call.get("resultDisplay"))
    responses = [part.get("functionResponse", {}).get("response", part) for part in parts]
    return text([response.get("output", response.get("error", response)) for response in responses])
