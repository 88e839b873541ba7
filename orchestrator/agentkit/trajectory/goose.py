"""goose's stream of JSON lines (`--output-format stream-json`): messages in pieces, and token counts of the whole last.

Source: version 1 of the program. The pieces of one message share its id; results of tools come as messages of the user.
The lines before the first message are a greeting.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import arguments, integer, number, printed_objects, text, timestamp


def read(files: Sequence[Path]) -> Iterator[Event]:
    """Read the output that the agent printed."""
    lines = list(printed_objects(files[0]))
    messages = [line["message"] for line in lines if line.get("type") == "message"]
    for _, pieces in groupby(messages, key=lambda message: message.get("id")):
        yield from _events(list(pieces))
    for line in lines:
        if line.get("type") == "complete":
            yield Metrics(
                prompt_tokens=integer(line.get("input_tokens")),
                completion_tokens=integer(line.get("output_tokens")),
                cached_tokens=integer(line.get("cache_read_input_tokens")),
                cost_usd=number(line.get("cost_usd")),
            )
        elif line.get("type") == "error":
            yield Step(source="system", message=text(line.get("error")))


def _events(pieces: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
    """One message, joined from its pieces: a step, and the results of tools."""
    said = thought = ""
    calls: list[ToolCall] = []
    results: list[ToolResult] = []
    for part in (part for piece in pieces for part in piece.get("content") or ()):
        id_ = part.get("id") or ""
        match part.get("type"):
            case "text":
                said += text(part)
            case "thinking":
                thought += text(part.get("thinking"))
            case "toolRequest":
                call = (part.get("toolCall") or {}).get("value") or {}
                given = arguments(call.get("arguments"))
                calls.append(ToolCall(id=id_, name=call.get("name") or "", arguments=given))
            case "toolResponse":
                result = part.get("toolResult") or {}
                content = text((result.get("value") or {}).get("content")) or text(result.get("error"))
                results.append(ToolResult(call_id=id_, content=content))
    if said or thought or calls:
        first = pieces[0]
        yield Step(
            source="agent" if first.get("role") == "assistant" else "user",
            message=said,
            timestamp=timestamp(first.get("created")),
            model=((first.get("metadata") or {}).get("inference") or {}).get("requestedModel"),
            reasoning=thought,
            calls=tuple(calls),
        )
    yield from results
