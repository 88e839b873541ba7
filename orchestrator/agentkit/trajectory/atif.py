"""The records of an ATIF document (Agent Trajectory Interchange Format) and how they become one.

Source of every rule here: RFC 0001 of the Harbor project. Readers say what happened in the order in which their agent
wrote it down, results after the calls they belong to; the format wants both in one step, so they are brought together
here, once for all agents.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

#: Not the newest version but the oldest that has every field written here: a reader that knows a later one accepts it.
SCHEMA_VERSION: Final = "ATIF-v1.4"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """What the model asked for: a tool by name, with the arguments it gave it."""

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What came back. It belongs to the latest step that has a call of this id; an empty id is nobody's call."""

    call_id: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What one call of the model took; None is unknown. `prompt_tokens` has the cached ones in it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One turn: a system prompt, a message of the user, or what the model answered to all before.

    `timestamp` is ISO 8601. `model`, `reasoning`, `calls` and `metrics` are the agent's only: other sources have none.
    """

    source: Literal["system", "user", "agent"]
    message: str
    timestamp: str | None = None
    model: str | None = None
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    metrics: Metrics | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


#: What a reader yields, in the order in which it happened. Metrics by themselves are those of the whole, of agents that
#: do not count single steps.
Event = Step | ToolResult | Metrics


def document(
    events: Iterable[Event], *, agent: str, version: str | None, model: str | None, session: str
) -> dict[str, Any]:
    """Make the ATIF document of what happened; `model` is that of steps that name none.

    Raises ValueError when nothing happened: the format has no document without steps.
    """
    happened = list(events)
    steps, results = _brought_together(happened)
    whole = [event for event in happened if isinstance(event, Metrics)]
    if not steps:
        raise ValueError("nothing happened: there is neither a message nor a step of the agent")
    pairs = zip(steps, results, strict=True)
    written = {
        "schema_version": SCHEMA_VERSION,
        "session_id": session,
        "agent": _present({"name": agent, "version": version or "unknown", "model_name": model}),
        "steps": [_step(number, step, of_it) for number, (step, of_it) in enumerate(pairs, start=1)],
        "final_metrics": _final_metrics(steps, whole),
    }
    cleaned: dict[str, Any] = _clean(written)
    return cleaned


def _brought_together(events: Iterable[Event]) -> tuple[list[Step], list[list[ToolResult]]]:
    """The steps, and beside each the results that belong to it."""
    steps: list[Step] = []
    results: list[list[ToolResult]] = []
    callers: dict[str, int] = {}
    for event in events:
        if isinstance(event, Step):
            callers.update((call.id, len(steps)) for call in event.calls)
            steps.append(event)
            results.append([])
        elif isinstance(event, ToolResult) and steps:
            results[callers.get(event.call_id, -1)].append(event)
    return steps, results


def _step(number: int, step: Step, results: Sequence[ToolResult]) -> dict[str, Any]:
    written: dict[str, Any] = {
        "step_id": number,
        "timestamp": step.timestamp if _is_timestamp(step.timestamp) else None,
        "source": step.source,
        "message": step.message,
        "extra": dict(step.extra) or None,
        "observation": _observation(step, results),
    }
    if step.source == "agent":
        written |= {
            "model_name": step.model,
            "reasoning_content": step.reasoning or None,
            "tool_calls": [_call(call) for call in step.calls] or None,
            "metrics": _metrics(step.metrics),
        }
    return _present(written)


def _call(call: ToolCall) -> dict[str, Any]:
    return {"tool_call_id": call.id, "function_name": call.name, "arguments": dict(call.arguments)}


def _observation(step: Step, results: Sequence[ToolResult]) -> dict[str, Any] | None:
    known = {call.id for call in step.calls}
    written = [
        _present({"source_call_id": each.call_id if each.call_id in known else None, "content": each.content})
        for each in results
    ]
    return {"results": written} if written else None


def _metrics(metrics: Metrics | None) -> dict[str, Any] | None:
    if metrics is None:
        return None
    return _present(
        {
            "prompt_tokens": metrics.prompt_tokens,
            "completion_tokens": metrics.completion_tokens,
            "cached_tokens": metrics.cached_tokens,
            "cost_usd": metrics.cost_usd,
        }
    )


def _final_metrics(steps: Sequence[Step], whole: Sequence[Metrics]) -> dict[str, Any]:
    counted = whole or [step.metrics for step in steps if step.metrics is not None]
    return _present(
        {
            "total_prompt_tokens": _total(each.prompt_tokens for each in counted),
            "total_completion_tokens": _total(each.completion_tokens for each in counted),
            "total_cached_tokens": _total(each.cached_tokens for each in counted),
            "total_cost_usd": _total(each.cost_usd for each in counted),
            "total_steps": len(steps),
        }
    )


def _total(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _present(written: dict[str, Any]) -> dict[str, Any]:
    """Optional keys are left out, not null: that is valid in every version."""
    return {key: value for key, value in written.items() if value is not None}


def _is_timestamp(text: str | None) -> bool:
    try:
        return text is not None and bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def _clean(value: Any) -> Any:
    """Half of a surrogate pair is valid in a JSON file's escapes, and cannot be written as UTF-8."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {_clean(str(key)): _clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(each) for each in value]
    return value
