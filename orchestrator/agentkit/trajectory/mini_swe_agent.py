"""mini-SWE-agent's trajectory file: the messages in the form of the model's API, with the program's notes in `extra`.

Source: `trajectory_format` mini-swe-agent-1.1, written by version 2 of the program. A reply that could not be used is
not a message of its own there; it is in the notes of the complaint that the model got in answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import (
    TrajectoryError,
    arguments,
    integer,
    json_document,
    number,
    text,
    timestamp,
)


def read(files: Sequence[Path]) -> Iterator[Event]:
    """Read the one file, which the agent rewrites after each step. Raises TrajectoryError."""
    file = files[0]
    messages = json_document(file).get("messages")
    if not isinstance(messages, list):
        raise TrajectoryError(f"{file}:1: there is no list `messages`, as a trajectory of mini-SWE-agent has it")
    for message in messages:
        role, said, notes = message.get("role"), text(message.get("content")), message.get("extra") or {}
        when = timestamp(notes.get("timestamp"))
        if role == "tool":
            yield ToolResult(call_id=message.get("tool_call_id") or "", content=said)
        elif role == "assistant":
            yield _step(message, notes)
        elif role == "exit":
            status = notes.get("exit_status", "")
            yield Step(source="system", message=said, timestamp=when, extra={"exit_status": status})
        else:
            choices = _response(notes).get("choices")
            if choices and (refused := choices[0].get("message")):
                yield _step(refused, notes)
            yield Step(source="system" if role == "system" else "user", message=said, timestamp=when)


def _response(notes: Mapping[str, Any]) -> Mapping[str, Any]:
    response = notes.get("response")
    return response if isinstance(response, dict) else {}


def _step(message: Mapping[str, Any], notes: Mapping[str, Any]) -> Step:
    """A reply of the model."""
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        given = arguments(function.get("arguments"))
        calls.append(ToolCall(id=call.get("id") or "", name=function.get("name") or "bash", arguments=given))
    usage = _response(notes).get("usage")
    return Step(
        source="agent",
        message=text(message.get("content")),
        timestamp=timestamp(notes.get("timestamp")),
        model=_response(notes).get("model"),
        reasoning=text(message.get("reasoning_content")),
        calls=tuple(calls),
        metrics=Metrics(
            prompt_tokens=integer(usage.get("prompt_tokens")),
            completion_tokens=integer(usage.get("completion_tokens")),
            cached_tokens=integer((usage.get("prompt_tokens_details") or {}).get("cached_tokens")),
            cost_usd=number(notes.get("cost")) or None,
        )
        if usage
        else None,
    )
