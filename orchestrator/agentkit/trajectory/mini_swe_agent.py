"""mini-SWE-agent's trajectory file: the messages in the form of the model's API, with the program's notes in `extra`.

Source: `trajectory_format` mini-swe-agent-1.1, written by version 2 of the program. A reply that could not be used is
not a message of its own there; it is in the notes of the complaint that the model got in answer.
"""

from orchestrator.agentkit.trajectory import reading
from orchestrator.agentkit.trajectory.atif import Step, ToolCall, ToolResult


def read(files: reading.Files) -> reading.Events:
    """Read the one file, which the agent rewrites after each step. Raises TrajectoryError."""
    file = files[0]
    messages = reading.json_document(file).get("messages")
    if not isinstance(messages, list):
        raise reading.TrajectoryError(f"{file}:1: no list `messages`, as a trajectory of mini-SWE-agent has it")
    for message in messages:
        role, said, notes = message.get("role"), reading.text(message.get("content")), message.get("extra") or {}
        when = reading.timestamp(notes.get("timestamp"))
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


def _response(notes: reading.Object) -> reading.Object:
    response = notes.get("response")
    return response if isinstance(response, dict) else {}


def _step(message: reading.Object, notes: reading.Object) -> Step:
    """A reply of the model."""
    response = _response(notes)
    usage = response.get("usage")
    return Step(
        source="agent",
        message=reading.text(message.get("content")),
        timestamp=reading.timestamp(notes.get("timestamp")),
        model=response.get("model"),
        reasoning=reading.text(message.get("reasoning_content")),
        calls=tuple(
            ToolCall(
                id=call.get("id") or "",
                name=reading.inside(call, "function", "name") or "bash",
                arguments=reading.arguments(reading.inside(call, "function", "arguments")),
            )
            for call in message.get("tool_calls") or ()
        ),
        metrics=reading.metrics(
            usage,
            prompt="prompt_tokens",
            completion="completion_tokens",
            cached="prompt_tokens_details.cached_tokens",
            cost=notes.get("cost") or None,
        )
        if usage
        else None,
    )
