"""Codex's sessions: JSON lines below ~/.codex/sessions, its own events among the items of the model's conversation.

The items are the Responses API's, one for each part of an answer. What the answer took is an event after its parts,
so the parts wait for it: with the next answer, or with what comes back of a call, one is over too.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import arguments, integer, json_lines, text

_PARTS: Final = ("reasoning", "function_call", "custom_tool_call", "local_shell_call")
_RESULTS: Final = ("function_call_output", "custom_tool_call_output")


def read(files: Sequence[Path]) -> Iterator[Event]:
    """The conversation of every file. Raises TrajectoryError."""
    for path in files:
        yield from _conversation(line for _, line in json_lines(path))


def _conversation(lines: Iterator[Mapping[str, Any]]) -> Iterator[Event]:
    answer = _Answer()
    for line in lines:
        item, moment = line.get("payload") or {}, line.get("timestamp")
        if line.get("type") == "session_meta" and (told := item.get("base_instructions")):
            yield Step(source="system", message=text(told), timestamp=moment)
        elif line.get("type") == "turn_context":
            answer.model = item.get("model")
        elif line.get("type") == "event_msg" and item.get("type") == "token_count":
            yield from answer.end(item.get("info"))
        elif line.get("type") == "response_item":
            yield from _item(item, moment, answer)
    yield from answer.end()


class _Answer:
    """The parts of the model's present answer."""

    def __init__(self) -> None:
        self.model: str | None = None
        self._parts: list[Mapping[str, Any]] = []
        self._results: list[ToolResult] = []
        self._since: str | None = None

    def add(self, part: Mapping[str, Any], moment: str | None) -> Iterator[Event]:
        if self._results:
            yield from self.end()
        self._since = self._since or moment
        self._parts.append(part)

    def returned(self, result: ToolResult) -> None:
        self._results.append(result)

    def end(self, info: Mapping[str, Any] | None = None) -> Iterator[Event]:
        """The answer as a step, with what came back of its calls; nothing where there is none."""
        if self._parts:
            yield self._step(_metrics(info))
        yield from self._results
        self._parts, self._results, self._since = [], [], None

    def _step(self, metrics: Metrics | None) -> Step:
        thoughts = [part.get("summary") or part.get("content") for part in self._of("reasoning")]
        return Step(
            source="agent",
            message=text([part.get("content") for part in self._of("message")]),
            timestamp=self._since,
            model=self.model,
            reasoning=text(thoughts),
            calls=tuple(_call(part) for part in self._parts if str(part.get("type")).endswith("_call")),
            metrics=metrics,
        )

    def _of(self, kind: str) -> list[Mapping[str, Any]]:
        return [part for part in self._parts if part.get("type") == kind]


def _item(item: Mapping[str, Any], moment: str | None, answer: _Answer) -> Iterator[Event]:
    kind = item.get("type")
    if kind in _RESULTS:
        answer.returned(ToolResult(call_id=item.get("call_id", ""), content=_output(item.get("output"))))
    elif kind in _PARTS or (kind == "message" and item.get("role") == "assistant"):
        yield from answer.add(item, moment)
    elif kind == "message":
        yield from answer.end()
        is_user = item.get("role") == "user"  # what instructs the model is the system's, by whatever name
        words = text(item.get("content"))
        yield Step(source="user" if is_user else "system", message=words, timestamp=moment)


def _call(part: Mapping[str, Any]) -> ToolCall:
    """A call of a tool, by whatever of its three kinds: they name their arguments differently."""
    given = part.get("arguments", part.get("input", part.get("action")))
    return ToolCall(
        id=part.get("call_id") or part.get("id") or "",
        name=part.get("name", "shell"),
        arguments=arguments(given),
    )


def _output(output: Any) -> str:
    """A text, or an object that has it beside the exit status."""
    return text(output.get("content", output.get("output"))) if isinstance(output, dict) else text(output)


def _metrics(info: Mapping[str, Any] | None) -> Metrics | None:
    used = (info or {}).get("last_token_usage")
    if used is None:
        return None
    return Metrics(
        prompt_tokens=integer(used.get("input_tokens")),
        completion_tokens=integer(used.get("output_tokens")),
        cached_tokens=integer(used.get("cached_input_tokens")),
    )
