"""Documents of ATIF: whatever readers say, what is written is valid."""

from typing import Any

import orjson
import pytest
from atif import Trajectory
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step, ToolCall, ToolResult, document

WORDS = st.text(st.characters(exclude_categories=()), max_size=8)
IDS = st.sampled_from(["", "a", "b", "c"])
JSON = st.dictionaries(WORDS, st.none() | st.integers(-9, 9) | WORDS | st.lists(WORDS, max_size=2), max_size=2)
COUNTS = st.none() | st.integers(0, 10**6)
METRICS = st.builds(
    Metrics,
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
    cached_tokens=COUNTS,
    cost_usd=st.none() | st.floats(0, 9),
)
STEPS = st.builds(
    Step,
    source=st.sampled_from(["system", "user", "agent"]),
    message=WORDS,
    timestamp=st.none() | WORDS | st.just("2026-01-01T00:00:00Z"),
    model=st.none() | WORDS,
    reasoning=WORDS,
    calls=st.lists(st.builds(ToolCall, id=IDS, name=WORDS, arguments=JSON), max_size=2).map(tuple),
    metrics=st.none() | METRICS,
    extra=JSON,
)
EVENTS = st.lists(STEPS | st.builds(ToolResult, call_id=IDS, content=WORDS) | METRICS, max_size=8)


def written(*events: Event, version: str | None = "1") -> dict[str, Any]:
    return document(events, agent="mine", version=version, model=None, session="s-1")


@given(first=STEPS, events=EVENTS)
def test_any_history_becomes_a_valid_document_that_can_be_written(first: Step, events: list[Event]) -> None:
    made = written(first, *events)
    Trajectory.model_validate(made)
    assert orjson.loads(orjson.dumps(made)) == made
    results = [each for step in made["steps"] for each in step.get("observation", {}).get("results", ())]
    assert len(results) == sum(isinstance(event, ToolResult) for event in events), "none is lost"


def test_a_result_belongs_to_the_latest_step_that_called_it() -> None:
    def step() -> Step:
        return Step(source="agent", message="", calls=(ToolCall(id="a", name="t"),))

    results = [ToolResult(call_id="a", content=content) for content in ("one", "two")]
    first, second = written(step(), results[0], step(), results[1])["steps"]
    assert [each["observation"]["results"][0]["content"] for each in (first, second)] == ["one", "two"]


def test_numbers_of_the_whole_count_instead_of_those_of_steps() -> None:
    step = Step(source="agent", message="", metrics=Metrics(prompt_tokens=1))
    assert written(step, step)["final_metrics"] == {"total_prompt_tokens": 2, "total_steps": 2}
    whole = Metrics(prompt_tokens=5, cost_usd=0.5)
    totals = {"total_prompt_tokens": 5, "total_cost_usd": 0.5, "total_steps": 2}
    assert written(step, step, whole)["final_metrics"] == totals


def test_an_unknown_version_is_said_to_be_unknown() -> None:
    assert written(Step(source="user", message="Go."), version=None)["agent"] == {"name": "mine", "version": "unknown"}


def test_an_empty_history_gives_no_document() -> None:
    with pytest.raises(ValueError, match="nothing happened"):
        written(ToolResult(call_id="a", content="lost"))
