"""goose's stream of JSON lines (`--output-format stream-json`): messages in pieces, and token counts of the whole last.

Source: version 1 of the program. The pieces of one message share its id; results of tools come as messages of the user.
The lines before the first message are a greeting.
"""

from itertools import groupby

from orchestrator.agentkit.trajectory import reading
from orchestrator.agentkit.trajectory.atif import Step, ToolCall, ToolResult


def read(files: reading.Files) -> reading.Events:
    """Read the output that the agent printed."""
    lines = list(reading.printed_objects(files[0]))
    messages = [line["message"] for line in reading.of_type("message", lines)]
    for _, pieces in groupby(messages, key=lambda message: message.get("id")):
        yield from _events(list(pieces))
    for line in lines:
        if line.get("type") == "complete":
            yield reading.metrics(
                line,
                prompt="input_tokens",
                completion="output_tokens",
                cached="cache_read_input_tokens",
                cost=line.get("cost_usd"),
            )
        elif line.get("type") == "error":
            yield Step(source="system", message=reading.text(line.get("error")))


def _events(pieces: list[reading.Object]) -> reading.Events:
    """One message, joined from its pieces: a step, and the results of tools."""
    said = thought = ""
    calls: list[ToolCall] = []
    results: list[ToolResult] = []
    for part in (part for piece in pieces for part in piece.get("content") or ()):
        id_ = part.get("id") or ""
        match part.get("type"):
            case "text":
                said += reading.text(part)
            case "thinking":
                thought += reading.text(part.get("thinking"))
            case "toolRequest":
                call = reading.inside(part, "toolCall", "value") or {}
                given = reading.arguments(call.get("arguments"))
                calls.append(ToolCall(id=id_, name=call.get("name") or "", arguments=given))
            case "toolResponse":
                content = reading.text(reading.inside(part, "toolResult", "value", "content"))
                results.append(
                    ToolResult(
                        call_id=id_, content=content or reading.text(reading.inside(part, "toolResult", "error"))
                    )
                )
    if said or thought or calls:
        first = pieces[0]
        yield Step(
            source="agent" if first.get("role") == "assistant" else "user",
            message=said,
            timestamp=reading.timestamp(first.get("created")),
            model=reading.inside(first, "metadata", "inference", "requestedModel"),
            reasoning=thought,
            calls=tuple(calls),
        )
    yield from results
