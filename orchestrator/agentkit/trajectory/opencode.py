"""OpenCode's events, as `opencode run --format json` prints them: JSON lines, perhaps with other lines between them.

Its session is a database that the program may hold open. The printed events have the same steps, parts and numbers,
but not the problem statement.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import arguments, integer, printed_objects, text, timestamp


def read(files: Sequence[Path]) -> Iterator[Event]:
    """Read the steps of every file."""
    for path in files:
        parts: list[Mapping[str, Any]] = []
        for event in printed_objects(path):
            if not isinstance(event.get("part"), dict):
                continue
            if event.get("type") in {"text", "reasoning", "tool_use"}:
                parts.append(event)
            elif event.get("type") == "step_finish":
                yield from _step(parts, event)
                parts = []
        yield from _step(parts, {}) if parts else ()


def _step(events: Sequence[Mapping[str, Any]], finish: Mapping[str, Any]) -> Iterator[Event]:
    parts = [event["part"] for event in events]
    calls = [part for part in parts if part.get("type") == "tool"]
    milliseconds = [*events, finish][0].get("timestamp")

    metrics = None
    if "tokens" in (finished := finish.get("part", {})):
        # `input` leaves out what is read from or written to a cache, `output` leaves out reasoning.
        tokens, cache = finished["tokens"], finished["tokens"].get("cache") or {}
        prompt = [integer(each) for each in (tokens.get("input"), cache.get("read"), cache.get("write"))]
        completion = [integer(each) for each in (tokens.get("output"), tokens.get("reasoning"))]
        metrics = Metrics(
            prompt_tokens=sum(filter(None, prompt)),
            completion_tokens=sum(filter(None, completion)),
            cached_tokens=integer(cache.get("read")),
            cost_usd=finished.get("cost"),
        )
    yield Step(
        source="agent",
        message=text([part.get("text") for part in parts if part.get("type") == "text"]),
        timestamp=timestamp(milliseconds / 1000) if isinstance(milliseconds, int | float) else None,
        reasoning=text([part.get("text") for part in parts if part.get("type") == "reasoning"]),
        calls=tuple(
            ToolCall(id=part["callID"], name=part["tool"], arguments=arguments(part["state"].get("input")))
            for part in calls
        ),
        metrics=metrics,
    )
    for part in calls:
        state = part["state"]
        yield ToolResult(call_id=part["callID"], content=text(state.get("output", state.get("error"))))
