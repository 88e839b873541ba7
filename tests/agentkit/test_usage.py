"""Usage reports of agents, and faults in them that only the log mentions."""

from __future__ import annotations

import json
import os
import resource
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agentkit.agent import is_usage
from orchestrator.agentkit.file.command import CommandAgent
from orchestrator.agentkit.file.definition import parse_definition
from orchestrator.agentkit.file.usage import MAX_LINE_BYTES, read_usage
from orchestrator.core.errors import DevboxLost

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.agentkit.conftest import LocalWorkspace, MakeTask

pytestmark = pytest.mark.anyio

CLAUDE = """
[usage]
input_tokens = "$[?@.type=='result'].usage.input_tokens"
cost_usd = "$[?@.type=='result'].total_cost_usd"
turns = { path = "$[?@.type=='assistant']", combine = "count" }
exit_reason = "$[?@.type=='result'].subtype"
"""
LINES = [
    "Welcome!",
    '{"type": "assistant", "usage": {"input_tokens": 7}}',
    '{"type": "assistant"}',
    '{"type": "result", "subtype": "success", "total_cost_usd": 0.25, "usage": {"input_tokens": 100}}',
    "{not json",
    '  {"type": "result", "subtype": "error_max_turns", "total_cost_usd": 0.5, "usage": {"input_tokens": 20}}',
]


async def read(text: str, log: bytes | str, workspace: LocalWorkspace, file: Path) -> tuple[Mapping[str, float], str]:
    usage = parse_definition("run = 'x'\n" + text, name="mine", file="mine.toml").usage
    assert usage is not None
    await anyio.Path(file).write_bytes(log if isinstance(log, bytes) else log.encode())
    return await read_usage(usage, file, workspace)


async def test_numbers_of_all_lines_are_added_up_and_the_last_word_counts(
    workspace: LocalWorkspace, tmp_path: Path
) -> None:
    report = await read(CLAUDE, "\n".join(LINES), workspace, tmp_path / "log")
    assert report == ({"input_tokens": 120, "cost_usd": 0.75, "turns": 2}, "error_max_turns")


@pytest.mark.parametrize(("combine", "value"), [("sum", 9), ("last", 2), ("max", 4), ("count", 4)])
async def test_several_numbers_become_one_as_the_file_says(
    workspace: LocalWorkspace, tmp_path: Path, combine: str, value: float
) -> None:
    text = f'[usage]\nturns = {{ path = "$..n", combine = "{combine}" }}'
    report = await read(text, '{"n": 3}\n{"a": [{"n": 4}, {"n": "five"}, {"n": 2}]}\n', workspace, tmp_path / "log")
    assert report == ({"turns": value}, "")


@pytest.mark.parametrize("value", ["true", "null", '"3"', "1e300", "[1]", "{}", "NaN"])
async def test_a_value_that_is_not_a_number_is_no_usage(workspace: LocalWorkspace, tmp_path: Path, value: str) -> None:
    assert await read('[usage]\nturns = "$..n"', f'{{"n": {value}}}', workspace, tmp_path / "log") == ({}, "")
    text = '[usage]\nformat = "json"\nturns = "$..n"'
    assert await read(text, f'{{"n": {value}}}', workspace, tmp_path / "log") == ({}, "")


async def test_a_sum_that_is_too_large_is_no_usage_and_half_a_character_no_reason(
    workspace: LocalWorkspace, tmp_path: Path
) -> None:
    text = '[usage]\nturns = "$..n"\ncost_usd = "$..c"\nexit_reason = "$..why"'
    log = json.dumps({"n": [{"n": 9 * 10**14}] * 2, "c": 1, "why": "\ud83d oops"})
    document = text.replace("[usage]", '[usage]\nformat = "json"')
    assert await read(document, log, workspace, tmp_path / "log") == ({"cost_usd": 1}, "? oops")


@pytest.mark.parametrize(
    "log",
    [
        '{"n": 1}',
        'Hello\n{"n": 9}\nWorld\n{\n  "a": {\n    "n": 1\n  }\n}\n',
        '[{"n": 0},\n {"n": 1}]\nDone.\n',
        '{"n": 1}\n{ is where a block of code begins\n',
        b'\xff\xfe\n{"n": 1}\n',
    ],
)
async def test_the_last_printed_json_document_counts(
    workspace: LocalWorkspace, tmp_path: Path, log: str | bytes
) -> None:
    report = await read('[usage]\nformat = "json"\nturns = "$..n"', log, workspace, tmp_path / "log")
    assert report == ({"turns": 1}, "")


async def test_a_file_in_the_devbox_is_the_newest_that_matches(workspace: LocalWorkspace, tmp_path: Path) -> None:
    for age, path in enumerate(["b/new.jsonl", "a b/$(echo)/old.jsonl", "b/older.jsonl", "b/newest.txt"]):
        file = workspace.root / ".mine" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"n": {age}}}\n')
        os.utime(file, (1000 - age, 1000 - age))
    text = '[usage]\nfrom = "{}"\nturns = "$..n"'
    for pattern, found in [
        ("~/.mine/**/*.jsonl", 0),
        (f"{workspace.root}/.mine/a ?/$(echo)/*.jsonl", 1),
        (".mine/b/older.jsonl", 2),
    ]:
        assert await read(text.format(pattern), "", workspace, tmp_path / "log") == ({"turns": found}, "")


@pytest.mark.parametrize("source", ["~/none.json", "~/*/none.json", "~/no json"])
async def test_a_file_that_cannot_be_read_is_no_usage_and_no_failure(
    workspace: LocalWorkspace, tmp_path: Path, source: str
) -> None:
    (workspace.root / "no json").write_text("no json")
    text = f'[usage]\nfrom = "{source}"\nformat = "json"\nturns = "$..n"'
    assert await read(text, "", workspace, tmp_path / "log") == ({}, "")
    workspace.fault = DevboxLost("gone")
    assert await read(text, "", workspace, tmp_path / "log") == ({}, "")


async def test_a_log_that_is_not_there_is_no_usage_and_no_failure(
    workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    definition = parse_definition("run = 'true'\n[usage]\nturns = '$..n'", name="mine", file="mine.toml")
    result = await CommandAgent(name="mine", definition=definition).solve(make_task(), workspace, lambda _: None)
    assert (result.exit_status, result.usage, result.exit_reason) == (0, {}, "")


async def test_an_agent_reports_what_it_used_even_when_it_failed(
    workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    text = "run = 'exit 3'\n" + CLAUDE
    agent = CommandAgent(name="mine", definition=parse_definition(text, name="mine", file="mine.toml"))
    task = make_task()
    task.log.write_text(LINES[3])
    result = await agent.solve(task, workspace, lambda _: None)
    assert (result.exit_status, result.usage) == (3, {"input_tokens": 100, "cost_usd": 0.25})
    assert result.exit_reason == "success"


async def test_documents_without_end_or_bottom_are_passed_over(workspace: LocalWorkspace, tmp_path: Path) -> None:
    deep = '{"n": ' * 900 + "1" + "}" * 900
    long = '{"n": 5, "pad": "' + "x" * MAX_LINE_BYTES + '"}'
    log = "\n".join([deep, "[" * 100_000, long, '{"n": 1}', long])
    assert await read('[usage]\nturns = "$.*.n"', log, workspace, tmp_path / "log") == ({"turns": 1}, "")
    text = '[usage]\nformat = "json"\nturns = "$..n"'
    assert await read(text, "[" * 100_000, workspace, tmp_path / "log") == ({}, "")
    assert await read(text, "[1\n" * 100_000, workspace, tmp_path / "log") == ({}, "")


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["n", "type", 'a"n']),
            st.recursive(
                st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
                lambda inner: (
                    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["n", "b"]), inner, max_size=2)
                ),
            ),
        ),
        max_size=5,
    )
)
def test_skipping_lines_without_the_name_loses_nothing(documents: list[dict[str, Any]]) -> None:
    """The quick look for the last name of a path agrees with looking at every line."""
    from orchestrator.agentkit.file.usage import _Finder, _search

    for path in ("$..n", "$..['n', 'b']", "$.*[?@.n].b"):
        finder, plain = (_Finder(path, is_usage, "sum") for _ in range(2))
        text = "\n".join(json.dumps(document) for document in documents).encode()
        _search("jsonl", [finder], text)
        for document in documents:
            plain.search([document])
        assert finder.value == plain.value


async def test_a_large_log_takes_little_memory_and_time(workspace: LocalWorkspace, tmp_path: Path) -> None:
    """32 MiB here, of lines that are no JSON, JSON of no interest, and one line without an end."""
    file = tmp_path / "log"
    with file.open("wb") as log:
        for _ in range(8):
            log.write(b"working on it\n" * 80_000)
            log.write(b'{"type": "assistant", "text": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}\n' * 20_000)
        log.write(b'{"type": "result", "usage": {"input_tokens": 5}}\n{')
        log.write(b"x" * 10 * 2**20)
    usage = parse_definition("run = 'x'\n" + CLAUDE.replace("turns", "#"), name="mine", file="mine.toml").usage
    assert usage is not None
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert await read_usage(usage, file, workspace) == ({"input_tokens": 5}, "")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
    assert time.monotonic() - began < 20
