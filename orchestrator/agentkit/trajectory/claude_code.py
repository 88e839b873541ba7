"""Claude Code's sessions: JSON lines below ~/.claude/projects, one file for the main session and each subagent's.

One answer of the model is written as several lines, one for each part (a thought, a text, a call). Each line has the
answer's id and its usage so far, so the parts are joined again here; added up, they would count an answer twice.
"""

from orchestrator.agentkit.trajectory import reading
from orchestrator.agentkit.trajectory.atif import Step, ToolCall, ToolResult

#: `input_tokens` leave out what is read from or written to a cache.
_PROMPT = "input_tokens cache_read_input_tokens cache_creation_input_tokens"


def read(files: reading.Files) -> reading.Events:
    """Read the conversation of every file. Raises TrajectoryError."""
    for path in files:
        lines = list(reading.json_lines(path))
        answers: dict[str, list[reading.Object]] = {}
        for line in reading.of_type("assistant", lines):
            answers.setdefault(line["message"]["id"], []).append(line)
        for line in lines:
            if line.get("type") == "assistant" and (parts := answers.pop(line["message"]["id"], None)):
                yield _answer(parts)
            elif line.get("type") == "user":
                content = line["message"]["content"]
                results = [] if isinstance(content, str) else reading.of_type("tool_result", content)
                words = content if isinstance(content, str) else [part for part in content if part not in results]
                if words:
                    yield Step(source="user", message=reading.text(words), timestamp=line.get("timestamp"))
                for part in results:
                    yield ToolResult(call_id=part.get("tool_use_id", ""), content=reading.text(part.get("content")))


def _answer(lines: list[reading.Object]) -> Step:
    last = lines[-1]["message"]
    parts = [part for line in lines for part in line["message"]["content"]]
    usage = last.get("usage")
    return Step(
        source="agent",
        message=reading.text(reading.of_type("text", parts)),
        timestamp=lines[0].get("timestamp"),
        model=last.get("model"),
        reasoning="\n".join(part.get("thinking", "") for part in reading.of_type("thinking", parts)),
        calls=tuple(
            ToolCall(id=part["id"], name=part["name"], arguments=reading.arguments(part.get("input")))
            for part in reading.of_type("tool_use", parts)
        ),
        metrics=None
        if usage is None
        else reading.metrics(usage, prompt=_PROMPT, completion="output_tokens", cached="cache_read_input_tokens"),
    )
