"""OpenCode's events, as `opencode run --format json` prints them: JSON lines, perhaps with other lines between them.

Its session is a database that the program may hold open; what it prints has the same steps, parts and numbers, but for
the statement it was given.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import arguments, integer, printed_objects, text, timestamp


def read(files: Sequence[Path]) -> Iterator[Event]:
    """The steps of every file."""
    for path in files:
        parts: list[Mapping[str, Any]] = []
        for event in _printed(path):
            if event.get("type") in {"text", "reasoning", "tool_use"}:
                parts.append(event)
            elif event.get("type") == "step_finish":
                yield from _step(parts, event)
                parts = []
        yield from _step(parts, {}) if parts else ()


def _printed(path: Path) -> Iterator[Mapping[str, Any]]:
    return (event for event in printed_objects(path) if isinstance(event.get("part"), dict))


def _step(events: Sequence[Mapping[str, Any]], finish: Mapping[str, Any]) -> Iterator[Event]:
    first = [*events, finish][0]
    parts = [event["part"] for event in events]
    calls = [part for part in parts if part.get("type") == "tool"]
    milliseconds = first.get("timestamp")
    yield Step(
        source="agent",
        message=text([part.get("text") for part in parts if part.get("type") == "text"]),
        timestamp=timestamp(milliseconds / 1000) if isinstance(milliseconds, int | float) else None,
        reasoning=text([part.get("text") for part in parts if part.get("type") == "reasoning"]),
        calls=tuple(
            ToolCall(id=part["callID"], name=part["tool"], arguments=arguments(part["state"].get("input")))
            for part in calls
        ),
        metrics=_metrics(finish.get("part")),
    )
    for part in calls:
        state = part["state"]
        yield ToolResult(call_id=part["callID"], content=text(state.get("output", state.get("error"))))


def _metrics(part: Mapping[str, Any] | None) -> Metrics | None:
    """What is read from and written to the cache is not among its `input`, what was thought not among its `output`."""
    if part is None or "tokens" not in part:
        return None
    tokens, cache = part["tokens"], part["tokens"].get("cache") or {}
    prompt = [integer(each) for each in (tokens.get("input"), cache.get("read"), cache.get("write"))]
    completion = [integer(each) for each in (tokens.get("output"), tokens.get("reasoning"))]
    return Metrics(
        prompt_tokens=sum(filter(None, prompt)),
        completion_tokens=sum(filter(None, completion)),
        cached_tokens=integer(cache.get("read")),
        cost_usd=part.get("cost"),
    )
