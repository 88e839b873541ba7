"""Claude Code's sessions: JSON lines below ~/.claude/projects, the main one and one for each helper that it started.

What the model said in one answer is written as one line for each part of it (a thought, a text, a call), each with the
answer's id and its usage so far, so they are brought together again here: added up, they would count an answer twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import arguments, integer, json_lines, text


def read(files: Sequence[Path]) -> Iterator[Event]:
    """The conversation of every file. Raises TrajectoryError."""
    for path in files:
        yield from _conversation([line for _, line in json_lines(path)])


def _conversation(lines: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
    answers: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line.get("type") == "assistant":
            answers.setdefault(line["message"]["id"], []).append(line)
    for line in lines:
        if line.get("type") == "assistant" and (parts := answers.pop(line["message"]["id"], None)):
            yield _answer(parts)
        elif line.get("type") == "user":
            yield from _said(line)


def _said(line: Mapping[str, Any]) -> Iterator[Event]:
    """The user's words, and what tools gave back in their name."""
    content = line["message"]["content"]
    words = content if isinstance(content, str) else [part for part in content if part.get("type") != "tool_result"]
    if words:
        yield Step(source="user", message=text(words), timestamp=line.get("timestamp"))
    for part in content if isinstance(content, list) else ():
        if part.get("type") == "tool_result":
            yield ToolResult(call_id=part.get("tool_use_id", ""), content=text(part.get("content")))


def _answer(lines: Sequence[Mapping[str, Any]]) -> Step:
    last = lines[-1]["message"]
    parts = [part for line in lines for part in line["message"]["content"]]
    return Step(
        source="agent",
        message=text([part for part in parts if part.get("type") == "text"]),
        timestamp=lines[0].get("timestamp"),
        model=last.get("model"),
        reasoning="\n".join(part.get("thinking", "") for part in parts if part.get("type") == "thinking"),
        calls=tuple(
            ToolCall(id=part["id"], name=part["name"], arguments=arguments(part.get("input")))
            for part in parts
            if part.get("type") == "tool_use"
        ),
        metrics=_metrics(last.get("usage")),
    )


def _metrics(usage: Mapping[str, Any] | None) -> Metrics | None:
    """What is read from and written to the cache is not among its `input_tokens`."""
    if usage is None:
        return None
    prompt = [integer(usage.get(f"{kind}input_tokens")) for kind in ("", "cache_read_", "cache_creation_")]
    return Metrics(
        prompt_tokens=sum(filter(None, prompt)),
        completion_tokens=integer(usage.get("output_tokens")),
        cached_tokens=integer(usage.get("cache_read_input_tokens")),
    )
