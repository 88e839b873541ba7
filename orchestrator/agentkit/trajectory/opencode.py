"""OpenCode's events, as `opencode run --format json` prints them: JSON lines, perhaps with other lines between them.

Its session is a database that the program may hold open. The printed events have the same steps, parts and numbers,
but not the problem statement.
"""

from orchestrator.agentkit.trajectory import reading
from orchestrator.agentkit.trajectory.atif import Step, ToolCall, ToolResult


def read(files: reading.Files) -> reading.Events:
    """Read the steps of every file."""
    for path in files:
        parts: list[reading.Object] = []
        for event in reading.printed_objects(path):
            if not isinstance(event.get("part"), dict):
                continue
            if event.get("type") in {"text", "reasoning", "tool_use"}:
                parts.append(event)
            elif event.get("type") == "step_finish":
                yield from _step(parts, event)
                parts = []
        yield from _step(parts, {}) if parts else ()


def _step(events: list[reading.Object], finish: reading.Object) -> reading.Events:
    parts = [event["part"] for event in events]
    calls = reading.of_type("tool", parts)
    milliseconds = [*events, finish][0].get("timestamp")
    finished = finish.get("part", {})
    yield Step(
        source="agent",
        message=reading.text([part.get("text") for part in reading.of_type("text", parts)]),
        timestamp=reading.timestamp(milliseconds / 1000) if isinstance(milliseconds, int | float) else None,
        reasoning=reading.text([part.get("text") for part in reading.of_type("reasoning", parts)]),
        calls=tuple(
            ToolCall(id=part["callID"], name=part["tool"], arguments=reading.arguments(part["state"].get("input")))
            for part in calls
        ),
        # `input` leaves out what is read from or written to a cache, `output` leaves out reasoning.
        metrics=reading.metrics(
            finished["tokens"],
            prompt="input cache.read cache.write",
            completion="output reasoning",
            cached="cache.read",
            cost=finished.get("cost"),
        )
        if "tokens" in finished
        else None,
    )
    for part in calls:
        state = part["state"]
        yield ToolResult(call_id=part["callID"], content=reading.text(state.get("output", state.get("error"))))
