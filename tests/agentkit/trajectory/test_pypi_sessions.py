"""Sessions of mini-SWE-agent, aider, goose and OpenHands, cut down, and the documents made of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from atif import Trajectory

from orchestrator.agentkit.trajectory import FORMATS, convert
from orchestrator.agentkit.trajectory.reading import TrajectoryError

SESSIONS: Final = Path(__file__).parent / "sessions"
LEFT: Final = {
    "mini-swe-agent": [SESSIONS / "mini-swe-agent.traj.json"],
    "aider": [SESSIONS / "aider" / "events.jsonl", SESSIONS / "aider" / "llm.txt"],
    "goose": [SESSIONS / "goose.jsonl"],
    "openhands": sorted((SESSIONS / "openhands").rglob("*.json")),
}
#: Format to the tool's name and what came back.
CALLED: Final = {
    "mini-swe-agent": ("bash", '{\n  "returncode": 0,\n  "output": ""\n}'),
    "goose": ("shell", "(no output)"),
    "openhands": ("terminal", ""),
}


def converted(format_: str, files: Sequence[Path]) -> dict[str, Any]:
    return convert(format_, files, agent="mine", version="1", model="m-1", session="s-1")


def agents(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for step in document["steps"] if step["source"] == "agent"]


@pytest.mark.parametrize("format_", LEFT)
def test_a_real_programs_session_becomes_a_valid_document(format_: str) -> None:
    document = converted(format_, LEFT[format_])
    trajectory = Trajectory.model_validate(document)
    assert (trajectory.session_id, trajectory.agent.name, trajectory.agent.model_name) == ("s-1", "mine", "m-1")
    said = [step["message"] for step in document["steps"] if step["source"] == "user"]
    assert sum("Make a file called done." in words for words in said) == (format_ != "goose"), "it prints no statement"


@pytest.mark.parametrize("format_", CALLED)
def test_calls_have_their_results_and_the_numbers_add_up(format_: str) -> None:
    tool, came_back = CALLED[format_]
    document = converted(format_, LEFT[format_])
    first, last = agents(document)
    (call,) = first["tool_calls"]
    assert (call["function_name"], call["arguments"]["command"]) == (tool, "touch done")
    assert first["observation"]["results"] == [{"source_call_id": call["tool_call_id"], "content": came_back}]
    assert last["message"] == "The problem is mended."
    assert document["final_metrics"] == {
        "total_prompt_tokens": 2300,
        "total_completion_tokens": 42,
        "total_cached_tokens": 1100,
        "total_steps": len(document["steps"]),
    }
    if format_ != "goose":
        assert first["metrics"] == {"prompt_tokens": 1000, "completion_tokens": 30, "cached_tokens": 200}


def test_aider_is_its_instructions_its_last_question_and_the_answer() -> None:
    document = converted("aider", LEFT["aider"])
    system, user, agent = document["steps"]
    assert system["message"].startswith("Act as an expert software developer.")
    assert user["message"].strip() == "Make a file called done.", "neither the examples nor what only prepares it"
    assert agent["message"] == "done\n```\nyes\n```"
    assert (document["final_metrics"]["total_prompt_tokens"], document["final_metrics"]["total_cost_usd"]) == (1300, 0)


def test_a_reply_that_mini_swe_agent_could_not_use_is_a_step_before_the_complaint(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    response = {"choices": [{"message": {"role": "assistant", "content": "Done?"}}], "usage": usage}
    complaint = {"role": "user", "content": "Tool call error", "extra": {"response": response, "cost": 0.5}}
    file = tmp_path / "run.traj.json"
    file.write_text(json.dumps({"messages": [complaint]}))
    reply, told = converted("mini-swe-agent", [file])["steps"]
    assert (reply["message"], told["message"]) == ("Done?", "Tool call error")
    assert reply["metrics"] == {"prompt_tokens": 7, "completion_tokens": 2, "cost_usd": 0.5}


def test_calls_of_one_reply_of_openhands_are_one_step(tmp_path: Path) -> None:
    def event(number: int, **fields: Any) -> Path:
        path = tmp_path / f"event-{number:05}.json"
        path.write_text(json.dumps(fields))
        return path

    def call(number: int, id_: str) -> Path:
        made = {"name": "terminal", "arguments": '{"command": "ls"}'}
        return event(number, source="agent", llm_response_id="r", tool_name="t", tool_call_id=id_, tool_call=made)

    denied = event(2, source="environment", tool_call_id="b", error="denied")
    (step,) = converted("openhands", [denied, call(1, "b"), call(0, "a")])["steps"]
    assert [each["tool_call_id"] for each in step["tool_calls"]] == ["a", "b"]
    assert step["observation"]["results"] == [{"source_call_id": "b", "content": "denied"}]


def test_goose_that_was_ended_is_read_up_to_there(tmp_path: Path) -> None:
    broken = tmp_path / "agent.log"
    broken.write_bytes(LEFT["goose"][0].read_bytes()[:-200])
    document = converted("goose", [broken])
    assert len(agents(document)) == 2
    assert document["final_metrics"] == {"total_steps": 2}, "its numbers come last"


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("left", [b"", b"\x00\xff nothing of the kind\n", b"[1, 2]\n", b'{"messages": [1]}\n'])
def test_an_invalid_trajectory_is_refused_with_its_file(format_: str, left: bytes, tmp_path: Path) -> None:
    file = tmp_path / "left.json"
    file.write_bytes(left)
    with pytest.raises(TrajectoryError, match=r"left\.json"):
        converted(format_, [file])


def test_an_agent_that_left_nothing_has_no_trajectory() -> None:
    with pytest.raises(TrajectoryError, match="no trajectory"):
        converted("goose", [])
