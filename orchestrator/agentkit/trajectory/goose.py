"""goose's stream of JSON lines (`--output-format stream-json`): messages in pieces, and at last what all of it took.

Source: version 1 of the program. The pieces of one message have its id; results of tools come as messages of the user.
What it prints before the first line is a greeting.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import arguments, integer, number, printed_objects, text, timestamp


@dataclass(slots=True)
class _Message:
    """A message, put together of its pieces."""

    role: str
    created: Any
    model: str | None
    said: str = ""
    thought: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    results: list[ToolResult] = field(default_factory=list)

    def add(self, part: Mapping[str, Any]) -> None:
        match part.get("type"):
            case "text":
                self.said += text(part)
            case "thinking":
                self.thought += text(part.get("thinking"))
            case "toolRequest":
                self.calls.append(_call(part))
            case "toolResponse":
                self.results.append(ToolResult(call_id=part.get("id") or "", content=_result(part)))

    def events(self) -> Iterator[Event]:
        if self.said or self.thought or self.calls:
            yield Step(
                source="agent" if self.role == "assistant" else "user",
                message=self.said,
                timestamp=timestamp(self.created),
                model=self.model,
                reasoning=self.thought,
                calls=tuple(self.calls),
            )
        yield from self.results


def read(files: Sequence[Path]) -> Iterator[Event]:
    """What happened, from what it printed."""
    lines = list(printed_objects(files[0]))
    messages = [line["message"] for line in lines if line.get("type") == "message"]
    for _, pieces in groupby(messages, key=lambda message: message.get("id")):
        yield from _together(list(pieces)).events()
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


def _together(pieces: Sequence[Mapping[str, Any]]) -> _Message:
    first = pieces[0]
    inference = (first.get("metadata") or {}).get("inference") or {}
    message = _Message(role=first.get("role", ""), created=first.get("created"), model=inference.get("requestedModel"))
    for piece in pieces:
        for part in piece.get("content") or ():
            message.add(part)
    return message


def _call(part: Mapping[str, Any]) -> ToolCall:
    call = (part.get("toolCall") or {}).get("value") or {}
    return ToolCall(id=part.get("id") or "", name=call.get("name") or "", arguments=arguments(call.get("arguments")))


def _result(part: Mapping[str, Any]) -> str:
    result = part.get("toolResult") or {}
    return text((result.get("value") or {}).get("content")) or text(result.get("error"))
