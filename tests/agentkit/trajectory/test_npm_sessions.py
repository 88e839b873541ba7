"""Sessions of claude-code, codex, gemini-cli and opencode as they wrote them, cut down, and what becomes of them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from orchestrator.agentkit.trajectory import convert
from orchestrator.agentkit.trajectory.reading import TrajectoryError

SESSIONS: Final = Path(__file__).parent / "sessions"
Write = Callable[..., Path]
#: Format to the tool's name, the argument that has the command, and what came back.
CALLED: Final = {
    "claude-code": ("Bash", "command", "(Bash completed with no output)"),
    "codex": ("exec_command", "cmd", "Chunk ID: 74e932\nWall time: 0.0000 secon…"),
    "gemini-cli": (
        "run_shell_command",
        "command",
        "<untrusted_context>\nOutput: (empty)\nProcess Group PGID: 78\n</untrusted_context>",
    ),
    "opencode": ("bash", "command", "(no output)"),
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Makes a session of these lines."""

    def write(*lines: Any, name: str = "session.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


def steps(format_: str, *files: Path) -> list[dict[str, Any]]:
    document = convert(format_, files, agent="mine", version="1", model="m-1", session="s-1")
    found: list[dict[str, Any]] = document["steps"]
    return found


def agents(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [step for step in found if step["source"] == "agent"]


@pytest.mark.parametrize("format_", CALLED)
def test_a_real_session_becomes_its_steps_with_calls_results_and_numbers(format_: str) -> None:
    tool, argument, came_back = CALLED[format_]
    first, last = agents(steps(format_, SESSIONS / f"{format_}.jsonl"))
    (call,) = first["tool_calls"]
    assert (call["function_name"], call["arguments"][argument]) == (tool, "sh mend.sh")
    assert first["observation"]["results"] == [{"source_call_id": call["tool_call_id"], "content": came_back}]
    assert last["message"] == "The problem is mended."
    assert [{**step["metrics"], "cost_usd": 0} for step in (first, last)] == [
        {"prompt_tokens": 1000, "completion_tokens": 30, "cached_tokens": 200, "cost_usd": 0},
        {"prompt_tokens": 1300, "completion_tokens": 12, "cached_tokens": 900, "cost_usd": 0},
    ]
    assert all(step["timestamp"].startswith("2026-11-23T22:") for step in (first, last))


@pytest.mark.parametrize("format_", [name for name in CALLED if name != "opencode"])
def test_the_statement_is_a_step_of_the_user_and_is_there_once(format_: str) -> None:
    found = steps(format_, SESSIONS / f"{format_}.jsonl")
    said = [step["message"] for step in found if step["source"] == "user"]
    assert said.count("Make a file called done.") == 1, said
    assert all("untrusted_context" not in words for words in said), "what tools say is not the user's"


def test_an_answer_of_claude_code_is_one_step_however_many_lines_it_has(write: Write) -> None:
    def line(part: dict[str, Any], output: int) -> dict[str, Any]:
        usage = {"input_tokens": 5, "cache_creation_input_tokens": 3, "output_tokens": output}
        return {"type": "assistant", "message": {"id": "m", "content": [part], "usage": usage}}

    told = {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "two"}]}
    session = write(
        line({"type": "thinking", "thinking": "Well."}, 1),
        line({"type": "text", "text": "I look."}, 1),
        line({"type": "tool_use", "id": "a", "name": "Read", "input": {"path": "x"}}, 1),
        {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "a", "content": "one"}]}},
        line({"type": "tool_use", "id": "b", "name": "Read", "input": {"path": "y"}}, 9),
        {"type": "user", "message": {"content": [told]}},
    )
    (step,) = steps("claude-code", session)
    assert (step["reasoning_content"], step["message"]) == ("Well.", "I look.")
    assert [call["tool_call_id"] for call in step["tool_calls"]] == ["a", "b"]
    assert [result["content"] for result in step["observation"]["results"]] == ["one", "two"]
    assert step["metrics"] == {"prompt_tokens": 8, "completion_tokens": 9}


def test_the_parts_of_an_answer_of_codex_are_one_step_and_the_next_answer_another(write: Write) -> None:
    def item(**fields: Any) -> dict[str, Any]:
        return {"type": "response_item", "timestamp": "2026-01-01T00:00:00Z", "payload": fields}

    session = write(
        item(type="reasoning", summary=[{"type": "summary_text", "text": "Well."}]),
        item(type="message", role="assistant", content=[{"type": "output_text", "text": "I look."}]),
        item(type="function_call", call_id="a", name="shell", arguments='{"command": ["ls"]}'),
        item(type="custom_tool_call", call_id="b", name="apply_patch", input="*** Begin"),
        item(type="function_call_output", call_id="a", output="one"),
        item(type="custom_tool_call_output", call_id="b", output=[{"type": "input_text", "text": "two"}]),
        item(type="message", role="assistant", content=[{"type": "output_text", "text": "Done."}]),
    )
    first, last = steps("codex", session)
    assert (first["reasoning_content"], first["message"], last["message"]) == ("Well.", "I look.", "Done.")
    assert [call["arguments"] for call in first["tool_calls"]] == [{"command": ["ls"]}, {"value": "*** Begin"}]
    assert [result["content"] for result in first["observation"]["results"]] == ["one", "two"]


def test_a_session_of_gemini_in_one_document_is_read_too(write: Write) -> None:
    thought = {"subject": "Plan", "description": "look first"}
    tokens = {"input": 7, "output": 2, "cached": 0, "thoughts": 3}
    call = {"id": "a", "name": "glob", "args": {}, "result": [{"functionResponse": {"response": {"error": "no"}}}]}
    message = {"id": "2", "type": "gemini", "content": "", "thoughts": [thought], "tokens": tokens, "toolCalls": [call]}
    session = write({"messages": [{"id": "1", "type": "user", "content": "Go."}, message]}, name="session.json")
    said, answer = steps("gemini-cli", session)
    assert (said["message"], answer["reasoning_content"]) == ("Go.", "Plan: look first")
    assert answer["metrics"] == {"prompt_tokens": 7, "completion_tokens": 5, "cached_tokens": 0}
    assert answer["observation"]["results"] == [{"source_call_id": "a", "content": "no"}]


def test_output_of_opencode_is_read_between_other_lines_up_to_its_end(write: Write) -> None:
    state = {"input": {"command": "ls"}, "error": "denied"}
    tool = {
        "type": "tool_use",
        "timestamp": 1000,
        "part": {"type": "tool", "callID": "a", "tool": "bash", "state": state},
    }
    (step,) = steps("opencode", write("a warning", tool, '{"type": "step_fin'))
    assert step["observation"]["results"] == [{"source_call_id": "a", "content": "denied"}]
    assert "metrics" not in step, "its numbers were not there yet"


@pytest.mark.parametrize("format_", ["claude-code", "codex", "gemini-cli"])
def test_a_session_that_broke_off_is_read_up_to_there_and_a_damaged_one_names_its_line(
    format_: str, tmp_path: Path
) -> None:
    whole = (SESSIONS / f"{format_}.jsonl").read_bytes()
    broken, damaged = tmp_path / "broken.jsonl", tmp_path / "damaged.jsonl"
    broken.write_bytes(whole[:-20])
    assert agents(steps(format_, broken))
    damaged.write_bytes(whole.replace(b"{", b"(", 1))
    with pytest.raises(TrajectoryError, match=r"damaged\.jsonl:1"):
        steps(format_, damaged)
