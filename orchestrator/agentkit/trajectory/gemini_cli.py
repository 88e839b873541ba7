"""Gemini CLI's sessions: JSON lines below ~/.gemini/tmp; a later line replaces an earlier one with the same id.

Lines with `$set` change the session as a whole; the first of them has the opening message. Earlier releases wrote one
JSON document with a list of the same messages; it is read too.
"""

from orchestrator.agentkit.trajectory import reading
from orchestrator.agentkit.trajectory.atif import Step, ToolCall, ToolResult


def read(files: reading.Files) -> reading.Events:
    """Read the conversation of every file. Raises TrajectoryError."""
    for path in files:
        messages: dict[str, reading.Object] = {}  # each once, in its last state, in the conversation's order
        for line in [reading.json_document(path)] if path.suffix == ".json" else reading.json_lines(path):
            listed = line.get("$set", line).get("messages")
            for message in listed if listed is not None else [line]:
                if "id" in message and "type" in message:
                    messages[message["id"]] = message
        for message in messages.values():
            yield from _events(message)


def _events(message: reading.Object) -> reading.Events:
    content, calls = message.get("content"), message.get("toolCalls") or ()
    if message["type"] == "user":
        # The model is told the result of a call in the user's name; the result is listed with the call already.
        if not (isinstance(content, list) and content and all("functionResponse" in part for part in content)):
            yield Step(source="user", message=reading.text(content), timestamp=message.get("timestamp"))
    elif message["type"] == "gemini":
        thoughts, tokens = message.get("thoughts") or (), message.get("tokens")
        yield Step(
            source="agent",
            message=reading.text(content),
            timestamp=message.get("timestamp"),
            model=message.get("model"),
            reasoning="\n".join(f"{each.get('subject', '')}: {each.get('description', '')}" for each in thoughts),
            calls=tuple(
                ToolCall(id=call["id"], name=call["name"], arguments=reading.arguments(call.get("args")))
                for call in calls
            ),
            metrics=None
            if tokens is None
            else reading.metrics(tokens, prompt="input", completion="output thoughts", cached="cached"),
        )
        for call in calls:
            result = call.get("result")
            if isinstance(result, list):
                responses = [reading.inside(part, "functionResponse", "response") or part for part in result]
                result = [response.get("output", response.get("error", response)) for response in responses]
            yield ToolResult(call_id=call["id"], content=reading.text(result or call.get("resultDisplay")))
