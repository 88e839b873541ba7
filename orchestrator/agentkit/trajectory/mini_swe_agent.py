"""mini-SWE-agent's trajectory file: the messages as the model's API has them, with what it noted beside each.

Source: `trajectory_format` mini-swe-agent-1.1, written by version 2 of the program. A reply that could not be used is
not a message of its own there; it is beside the complaint that the model got in answer.
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
    """What happened, from the one file that it writes anew after each step. Raises TrajectoryError."""
    file = files[0]
    messages = json_document(file).get("messages")
    if not isinstance(messages, list):
        raise TrajectoryError(f"{file}:1: there is no list `messages`, as a trajectory of mini-SWE-agent has it")
    for message in messages:
        yield from _events(message)


def _events(message: Mapping[str, Any]) -> Iterator[Event]:
    role, said, beside = message.get("role"), text(message.get("content")), message.get("extra") or {}
    when = timestamp(beside.get("timestamp"))
    if role == "tool":
        yield ToolResult(call_id=message.get("tool_call_id") or "", content=said)
    elif role == "assistant":
        yield _step(message, beside)
    elif role == "exit":
        yield Step(source="system", message=said, timestamp=when, extra={"exit_status": beside.get("exit_status", "")})
    else:
        if refused := _reply(beside):
            yield _step(refused, beside)
        yield Step(source="system" if role == "system" else "user", message=said, timestamp=when)


def _step(message: Mapping[str, Any], beside: Mapping[str, Any]) -> Step:
    return Step(
        source="agent",
        message=text(message.get("content")),
        timestamp=timestamp(beside.get("timestamp")),
        model=_response(beside).get("model"),
        reasoning=text(message.get("reasoning_content")),
        calls=tuple(_call(call) for call in message.get("tool_calls") or ()),
        metrics=_metrics(beside),
    )


def _call(call: Mapping[str, Any]) -> ToolCall:
    function = call.get("function") or {}
    return ToolCall(
        id=call.get("id") or "", name=function.get("name") or "bash", arguments=arguments(function.get("arguments"))
    )


def _response(beside: Mapping[str, Any]) -> Mapping[str, Any]:
    response = beside.get("response")
    return response if isinstance(response, dict) else {}


def _reply(beside: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The model's message in a response that is kept beside another one's message."""
    choices = _response(beside).get("choices")
    return choices[0].get("message") if choices else None


def _metrics(beside: Mapping[str, Any]) -> Metrics | None:
    usage = _response(beside).get("usage")
    if not usage:
        return None
    return Metrics(
        prompt_tokens=integer(usage.get("prompt_tokens")),
        completion_tokens=integer(usage.get("completion_tokens")),
        cached_tokens=integer((usage.get("prompt_tokens_details") or {}).get("cached_tokens")),
        cost_usd=number(beside.get("cost")) or None,
    )
