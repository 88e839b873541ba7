"""Claude Code's sessions: JSON lines below ~/.claude/projects, one file for the main session and each subagent's.

One answer of the model is written as several lines, one for each part (a thought, a text, a call). Each line has the
answer's id and its usage so far, so the parts are joined again here; added up, they would count an answer twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import arguments, integer, json_lines, text


def read(files: Sequence[Path]) -> Iterator[Event]:
    """Read the conversation of every file. Raises TrajectoryError."""
    for path in files:
        lines = list(json_lines(path))
        answers: dict[str, list[Mapping[str, Any]]] = {}
        for line in lines:
            if line.get("type") == "assistant":
                answers.setdefault(line["message"]["id"], []).append(line)
        for line in lines:
            if line.get("type") == "assistant" and (parts := answers.pop(line["message"]["id"], None)):
                yield _answer(parts)
            elif line.get("type") == "user":
                yield from _from_user(line)


def _from_user(line: Mapping[str, Any]) -> Iterator[Event]:
    """The user's words, and the results of tools, which come in the user's name."""
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

    metrics = None
    if (usage := last.get("usage")) is not None:  # its `input_tokens` leave out what is read from or written to a cache
        prompt = [integer(usage.get(f"{kind}input_tokens")) for kind in ("", "cache_read_", "cache_creation_")]
        metrics = Metrics(
            prompt_tokens=sum(filter(None, prompt)),
            completion_tokens=integer(usage.get("output_tokens")),
            cached_tokens=integer(usage.get("cache_read_input_tokens")),
        )
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
        metrics=metrics,
    )
