"""OpenHands' conversation folder: one JSON file for each event, in the order of their names, and a state with numbers.

Source: version 1 of its software development kit. Calls of one reply are events of their own with one response id; the
numbers of that reply are in the state, under the same id.
"""

from itertools import groupby
from typing import Final

from orchestrator.agentkit.trajectory import reading
from orchestrator.agentkit.trajectory.atif import Metrics, Step, ToolCall, ToolResult

_STATE: Final = "base_state.json"


def read(files: reading.Files) -> reading.Events:
    """Read all the files of a conversation. Raises TrajectoryError."""
    numbers: dict[str, Metrics] = {}  # by response id; costs are there for replies of known price only, so not taken
    for state in (reading.json_document(file) for file in files if file.name == _STATE):
        for used in (reading.inside(state, "stats", "usage_to_metrics") or {}).values():
            for usage in used.get("token_usages") or ():
                numbers[usage.get("response_id", "")] = reading.metrics(
                    usage, prompt="prompt_tokens", completion="completion_tokens", cached="cache_read_tokens"
                )

    events = [
        reading.json_document(file) for file in sorted(files, key=lambda file: file.name) if file.match("event-*.json")
    ]
    for id_, group in groupby(events, key=lambda event: event.get("llm_response_id")):
        if id_:
            yield _reply(list(group), numbers.get(id_))
            continue
        for event in group:
            if event.get("tool_call_id"):
                content = reading.text(reading.inside(event, "observation", "content")) or reading.text(
                    event.get("error")
                )
                yield ToolResult(call_id=event["tool_call_id"], content=content)
                continue
            system = event.get("system_prompt")
            said = (event.get("llm_message") or system or {}).get("content") or system
            yield Step(
                source="user" if event.get("source") == "user" else "system",
                message=reading.text(said) or reading.text(event.get("detail") or event.get("kind")),
                timestamp=event.get("timestamp"),
            )


def _reply(events: list[reading.Object], numbers: Metrics | None) -> Step:
    """One reply of the model; its calls, if any, share its thought."""
    first = events[0]
    message = first.get("llm_message") or {}
    return Step(
        source="agent",
        message=reading.text(message.get("content")) or reading.text(first.get("thought")),
        timestamp=first.get("timestamp"),
        reasoning=reading.text(first.get("reasoning_content") or message.get("reasoning_content")),
        calls=tuple(
            ToolCall(
                id=event["tool_call_id"],
                name=event.get("tool_name") or "",
                arguments=reading.arguments(reading.inside(event, "tool_call", "arguments")),
            )
            for event in events
            if event.get("tool_call_id")
        ),
        metrics=numbers,
    )
