"""Codex's sessions: JSON lines below ~/.codex/sessions, its own events among the items of the model's conversation.

The items are the Responses API's, one for each part of an answer. The token counts of an answer are an event after its
parts, so the parts wait for it; an answer is also over at the next answer, or at the result of a call.
"""

from typing import Final

from orchestrator.agentkit.trajectory import reading
from orchestrator.agentkit.trajectory.atif import Step, ToolCall, ToolResult

_PARTS: Final = ("reasoning", "function_call", "custom_tool_call", "local_shell_call")
_RESULTS: Final = ("function_call_output", "custom_tool_call_output")


def read(files: reading.Files) -> reading.Events:
    """Read the conversation of every file. Raises TrajectoryError."""
    for path in files:
        answer = _Answer()
        for line in reading.json_lines(path):
            item, moment = line.get("payload") or {}, line.get("timestamp")
            if line.get("type") == "session_meta" and (told := item.get("base_instructions")):
                yield Step(source="system", message=reading.text(told), timestamp=moment)
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
        self._parts: list[reading.Object] = []
        self._results: list[ToolResult] = []
        self._since: str | None = None

    def add(self, item: reading.Object, moment: str | None) -> reading.Events:
        """Take the next item of the conversation; yields the answer if this item begins something else."""
        kind = item.get("type")
        if kind in _RESULTS:
            output = item.get("output")
            if isinstance(output, dict):  # the text beside the exit status
                output = output.get("content", output.get("output"))
            self._results.append(ToolResult(call_id=item.get("call_id", ""), content=reading.text(output)))
        elif kind in _PARTS or (kind == "message" and item.get("role") == "assistant"):
            if self._results:
                yield from self.end()
            self._since = self._since or moment
            self._parts.append(item)
        elif kind == "message":
            yield from self.end()
            is_user = item.get("role") == "user"  # every other role instructs the model, as the system does
            words = reading.text(item.get("content"))
            yield Step(source="user" if is_user else "system", message=words, timestamp=moment)

    def end(self, info: reading.Object | None = None) -> reading.Events:
        """Yield the answer as a step, and the results of its calls; nothing if there is no answer."""
        used = (info or {}).get("last_token_usage")
        if self._parts:
            thoughts = [
                each.get("summary") or each.get("content") for each in reading.of_type("reasoning", self._parts)
            ]
            yield Step(
                source="agent",
                message=reading.text([part.get("content") for part in reading.of_type("message", self._parts)]),
                timestamp=self._since,
                model=self.model,
                reasoning=reading.text(thoughts),
                calls=tuple(
                    ToolCall(
                        id=part.get("call_id") or part.get("id") or "",
                        name=part.get("name", "shell"),
                        arguments=reading.arguments(part.get("arguments", part.get("input", part.get("action")))),
                    )
                    for part in self._parts
                    if str(part.get("type")).endswith("_call")
                ),
                metrics=None
                if used is None
                else reading.metrics(
                    used, prompt="input_tokens", completion="output_tokens", cached="cached_input_tokens"
                ),
            )
        yield from self._results
        self._parts, self._results, self._since = [], [], None
