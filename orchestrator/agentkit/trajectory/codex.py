"""Codex's sessions: JSON lines below ~/.codex/sessions, its own events among the items of the model's conversation.

The items are the Responses API's, one for each part of an answer. The token counts of an answer are an event after its
parts, so the parts wait for it; an answer is also over at the next answer, or at the result of a call.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult
from orchestrator.agentkit.trajectory.reading import arguments, integer, json_lines, text

_PARTS: Final = ("reasoning", "function_call", "custom_tool_call", "local_shell_call")
_RESULTS: Final = ("function_call_output", "custom_tool_call_output")


def read(files: Sequence[Path]) -> Iterator[Event]:
    """Read the conversation of every file. Raises TrajectoryError."""
    for path in files:
        answer = _Answer()
        for line in json_lines(path):
            item, moment = line.get("payload") or {}, line.get("timestamp")
            if line.get("type") == "session_meta" and (told := item.get("base_instructions")):
                yield Step(source="system", message=text(told), timestamp=moment)
            elif line.get("type") == "turn_context":
                answer.model = item.get("model")
            elif line.get("type") == "event_msg" and item.get("type") == "token_count":
                yield from answer.end(item.get("info"))
            elif line.get("type") == "response_item":
                yield from answer.add(item, moment)
        yield from answer.end()


class _Answer:
    """The parts of the model's present answer, and the results of its calls."""

    def __init__(self) -> None:
        self.model: str | None = None
        self._parts: list[Mapping[str, Any]] = []
        self._results: list[ToolResult] = []
        self._since: str | None = None

    def add(self, item: Mapping[str, Any], moment: str | None) -> Iterator[Event]:
        """Take the next item of the conversation; yields the answer if this item begins something else."""
        kind = item.get("type")
        if kind in _RESULTS:
            output = item.get("output")
            if isinstance(output, dict):  # the text beside the exit status
                output = output.get("content", output.get("output"))
            self._results.append(ToolResult(call_id=item.get("call_id", ""), content=text(output)))
        elif kind in _PARTS or (kind == "message" and item.get("role") == "assistant"):
            if self._results:
                yield from self.end()
            self._since = self._since or moment
            self._parts.append(item)
        elif kind == "message":
            yield from self.end()
            is_user = item.get("role") == "user"  # every other role instructs the model, as the system does
            words = text(item.get("content"))
            yield Step(source="user" if is_user else "system", message=words, timestamp=moment)

    def end(self, info: Mapping[str, Any] | None = None) -> Iterator[Event]:
        """Yield the answer as a step, and the results of its calls; nothing if there is no answer."""
        used = (info or {}).get("last_token_usage")
        if self._parts:
            thoughts = [part.get("summary") or part.get("content") for part in self._of("reasoning")]
            yield Step(
                source="agent",
                message=text([part.get("content") for part in self._of("message")]),
                timestamp=self._since,
                model=self.model,
                reasoning=text(thoughts),
                calls=tuple(_call(part) for part in self._parts if str(part.get("type")).endswith("_call")),
                metrics=None
                if used is None
                else Metrics(
                    prompt_tokens=integer(used.get("input_tokens")),
                    completion_tokens=integer(used.get("output_tokens")),
                    cached_tokens=integer(used.get("cached_input_tokens")),
                ),
            )
        yield from self._results
        self._parts, self._results, self._since = [], [], None

    def _of(self, kind: str) -> list[Mapping[str, Any]]:
        return [part for part in self._parts if part.get("type") == kind]


def _call(part: Mapping[str, Any]) -> ToolCall:
    """A call of one of the three kinds: they name their arguments differently."""
    given = part.get("arguments", part.get("input", part.get("action")))
    return ToolCall(
        id=part.get("call_id") or part.get("id") or "",
        name=part.get("name", "shell"),
        arguments=arguments(given),
    )
