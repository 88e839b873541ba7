"""OpenHands' conversation folder: one JSON file for each event, in the order of their names, and a state with numbers.

Source: version 1 of its software development kit. Calls of one reply are events of their own with one response id; the
numbers of that reply are in the state, under the same id.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import arguments, integer, json_document, text

_STATE: Final = "base_state.json"


def read(files: Sequence[Path]) -> Iterator[Event]:
    """Read all the files of a conversation. Raises TrajectoryError."""
    metrics: dict[str, Metrics] = {}  # by response id; costs are there for replies of known price only, so not taken
    for state in (json_document(file) for file in files if file.name == _STATE):
        for used in ((state.get("stats") or {}).get("usage_to_metrics") or {}).values():
            metrics |= {usage.get("response_id", ""): _metrics(usage) for usage in used.get("token_usages") or ()}

    events = [json_document(file) for file in sorted(files, key=lambda file: file.name) if file.match("event-*.json")]
    for id_, group in groupby(events, key=lambda event: event.get("llm_response_id")):
        together = list(group)
        yield from [_reply(together, metrics.get(id_))] if id_ else map(_other, together)


def _metrics(usage: Mapping[str, Any]) -> Metrics:
    return Metrics(
        prompt_tokens=integer(usage.get("prompt_tokens")),
        completion_tokens=integer(usage.get("completion_tokens")),
        cached_tokens=integer(usage.get("cache_read_tokens")),
    )


def _reply(events: Sequence[Mapping[str, Any]], metrics: Metrics | None) -> Step:
    """One reply of the model; its calls, if any, share its thought."""
    first = events[0]
    message = first.get("llm_message") or {}
    calls = []
    for event in events:
        if id_ := event.get("tool_call_id"):
            given = arguments((event.get("tool_call") or {}).get("arguments"))
            calls.append(ToolCall(id=id_, name=event.get("tool_name") or "", arguments=given))
    return Step(
        source="agent",
        message=text(message.get("content")) or text(first.get("thought")),
        timestamp=first.get("timestamp"),
        reasoning=text(first.get("reasoning_content") or message.get("reasoning_content")),
        calls=tuple(calls),
        metrics=metrics,
    )


def _other(event: Mapping[str, Any]) -> Event:
    """An event that is not the model's."""
    if event.get("tool_call_id"):
        seen = event.get("observation") or {}
        return ToolResult(call_id=event["tool_call_id"], content=text(seen.get("content")) or text(event.get("error")))
    said = (event.get("llm_message") or event.get("system_prompt") or {}).get("content") or event.get("system_prompt")
    return Step(
        source="user" if event.get("source") == "user" else "system",
        message=text(said) or text(event.get("detail") or event.get("kind")),
        timestamp=event.get("timestamp"),
    )
