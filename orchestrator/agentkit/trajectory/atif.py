"""The records of an ATIF document (Agent Trajectory Interchange Format), and the document made of them.

Source of every rule here: RFC 0001 of the Harbor project. Readers yield events in the order in which their agent wrote
them, results after the calls that they belong to; the format has both in one step, so they are joined here, once for
all agents.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

#: Not the newest version but the oldest that has every field written here: a reader that knows a later one accepts it.
SCHEMA_VERSION: Final = "ATIF-v1.4"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool by the model: the tool's name, and the arguments."""

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """The result of a call. It belongs to the latest step that has a call of this id; an empty id is no call's."""

    call_id: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The use of one call of the model; None is unknown. `prompt_tokens` includes the cached ones."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One turn: a system prompt, a message of the user, or the model's answer to all before.

    `timestamp` is ISO 8601. Only steps of the agent have `model`, `reasoning`, `calls` and `metrics`.
    """

    source: Literal["system", "user", "agent"]
    message: str
    timestamp: str | None = None
    model: str | None = None
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    metrics: Metrics | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


#: A reader yields these in the order in which they happened. Metrics by themselves are totals, of agents that do not
#: count single steps.
Event = Step | ToolResult | Metrics


def document(
    events: Iterable[Event], *, agent: str, version: str | None, model: str | None, session: str
) -> dict[str, Any]:
    """Make the ATIF document of the events; `model` is that of steps that name none.

    Raises ValueError if there is no step: the format has no document without one.
    """
    steps: list[Step] = []
    results: list[list[ToolResult]] = []
    totals: list[Metrics] = []
    callers: dict[str, int] = {}
    for event in events:
        if isinstance(event, Step):
            callers.update((call.id, len(steps)) for call in event.calls)
            steps.append(event)
            results.append([])
        elif isinstance(event, Metrics):
            totals.append(event)
        elif steps:
            results[callers.get(event.call_id, -1)].append(event)
    if not steps:
        raise ValueError("nothing happened: there is neither a message nor a step of the agent")

    counted = totals or [step.metrics for step in steps if step.metrics is not None]
    pairs = zip(steps, results, strict=True)
    written: dict[str, Any] = _writable(
        {
            "schema_version": SCHEMA_VERSION,
            "session_id": session,
            "agent": _present({"name": agent, "version": version or "unknown", "model_name": model}),
            "steps": [_step(number, step, its_results) for number, (step, its_results) in enumerate(pairs, start=1)],
            "final_metrics": _present(
                {
                    "total_prompt_tokens": _total(each.prompt_tokens for each in counted),
                    "total_completion_tokens": _total(each.completion_tokens for each in counted),
                    "total_cached_tokens": _total(each.cached_tokens for each in counted),
                    "total_cost_usd": _total(each.cost_usd for each in counted),
                    "total_steps": len(steps),
                }
            ),
        }
    )
    return written


def _step(number: int, step: Step, results: Sequence[ToolResult]) -> dict[str, Any]:
    called = {call.id for call in step.calls}
    observed = [
        _present({"source_call_id": each.call_id if each.call_id in called else None, "content": each.content})
        for each in results
    ]
    written: dict[str, Any] = {
        "step_id": number,
        "timestamp": None,
        "source": step.source,
        "message": step.message,
        "extra": dict(step.extra) or None,
        "observation": {"results": observed} if observed else None,
    }
    if step.timestamp is not None:
        with suppress(ValueError):
            datetime.fromisoformat(step.timestamp)
            written["timestamp"] = step.timestamp
    if step.source == "agent":
        calls = [
            {"tool_call_id": call.id, "function_name": call.name, "arguments": dict(call.arguments)}
            for call in step.calls
        ]
        written |= {
            "model_name": step.model,
            "reasoning_content": step.reasoning or None,
            "tool_calls": calls or None,
            "metrics": None if step.metrics is None else _present(asdict(step.metrics)),
        }
    return _present(written)


def _total(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _present(written: dict[str, Any]) -> dict[str, Any]:
    """Optional keys are left out, not null: that is valid in every version."""
    return {key: value for key, value in written.items() if value is not None}


def _writable(value: Any) -> Any:
    """Replace halves of surrogate pairs: JSON's escapes can say them, and UTF-8 cannot."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {_writable(str(key)): _writable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(each) for each in value]
    return value
