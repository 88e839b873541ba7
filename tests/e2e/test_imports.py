"""Benchmarks of other forms become folders that can be run: the reference solves each, and nothing else does."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import ROOT

if TYPE_CHECKING:
    from tests.e2e.conftest import Desk

HUMANEVAL = {
    "task_id": "HumanEval/7",
    "prompt": 'def half(number):\n    return number / 2\n\n\ndef twice(number):\n    """Return twice the number."""\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * number\n",
    "test": "def check(candidate):\n    assert half(candidate(3)) == 3\n",
}
MBPP = {
    "task_id": 3,
    "text": "Write a function that adds.",
    "code": "def add(a, b):\r\n    return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert math.isclose(add(.1, .2), .3)"],
    "test_setup_code": "import math",
    "challenge_test_list": [],
}


def write(file: Path, *rows: Any) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    return file


def scores(desk: "Desk", benchmark: str, *agents: str, words: Sequence[str] = ()) -> dict[tuple[str, str], float]:
    named = [word for each in agents for word in ("--agent", each)]
    desk.sweep("run", f"./{benchmark}", *named, *words, "--name", benchmark)
    return {(each["scenario_name"], each["agent"]): each["score"] for each in desk.results(f"runs/{benchmark}")}


def test_humaneval_is_scored_as_its_own_evaluation_does(desk: "Desk") -> None:
    """Asserts may use functions of the prompt; who ends the program early has not passed them."""
    write(desk.folder / "HumanEval.jsonl.gz", HUMANEVAL)
    desk.sweep("benchmarks", "import", "humaneval", "HumanEval.jsonl.gz", "--to", "set")
    wrong = "command:echo '    return number' >>solution.py"
    early = "command:echo '    pass' >>solution.py; echo 'import os; os._exit(0)' >>solution.py"
    right = "command:echo '    return number + number' >>solution.py"
    found = scores(desk, "set", "oracle", wrong, early, right)
    assert [found["HumanEval-7", agent] for agent in ("oracle", wrong, early, right)] == [1, 0, 0, 1]


def test_mbpp_shows_its_asserts_and_runs_them(desk: "Desk") -> None:
    write(desk.folder / "mbpp.jsonl", MBPP)
    desk.sweep("benchmarks", "import", "mbpp", "mbpp.jsonl", "--to", "set")
    assert "    assert add(1, 2) == 3\n" in (desk.folder / "set/mbpp-3/instruction.md").read_text()
    assert scores(desk, "set", "oracle", "nop") == {("mbpp-3", "oracle"): 1, ("mbpp-3", "nop"): 0}


def test_a_table_of_prompts_is_a_benchmark(desk: "Desk") -> None:
    lines = [
        "name,prompt,test,solution",
        'hello,"Write hello, please","grep -q hello it","echo hello >it"',
        "x,do,exit 3,",
    ]
    (desk.folder / "mine.csv").write_text("\n".join(lines))
    desk.sweep("benchmarks", "import", "prompts", "mine.csv", "--to", "set")
    command = "command:echo hello >it"
    assert scores(desk, "set", command) == {("hello", command): 1, ("x", command): 0}


@pytest.mark.parametrize(
    ("form", "name", "content", "message"),
    [
        ("mbpp", "x.jsonl", '{"task_id": 1, "text": "t", "code": "c"}', "x.jsonl: line 1: test_list: is missing"),
        ("humaneval", "x.jsonl", '\n{"promt": "p"}', "x.jsonl: line 2: prompt: is missing: did you mean promt?"),
        (
            "prompts",
            "x.csv",
            "prompt,test,timeout\ndo,true,soon",
            "x.csv: line 2: timeout: 'soon': a number of seconds",
        ),
        (
            "prompts",
            "x.jsonl",
            '{"prompt": ["p"], "test": "t"}',
            "x.jsonl: line 1: prompt: is list; a text was expected",
        ),
        ("prompts", "x.jsonl", "[1]", "x.jsonl: line 1: a JSON object was expected"),
        ("prompts", "x.jsonl", "{", "x.jsonl: line 1: "),
        ("prompts", "x.txt", "", ".jsonl, .json or .csv was expected"),
        ("prompts", "x.csv", "prompt,test", "no scenario is in it"),
        (
            "prompts",
            "x.json",
            '[{"name": "a/b", "prompt": "p", "test": "t"}, {"name": "a-b", "prompt": "p", "test": "t"}]',
            "two scenarios are called a-b",
        ),
        ("prompts", "x.jsonl.gz", "not gzip", "cannot be read"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    desk: "Desk", form: str, name: str, content: str, message: str
) -> None:
    (desk.folder / name).write_text(content)
    assert message in desk.refused("benchmarks", "import", form, name, "--to", "set")
    assert [each.name for each in desk.folder.iterdir()] == [name]


def test_what_is_there_is_not_written_over(desk: "Desk") -> None:
    (desk.folder / "set").mkdir()
    write(desk.folder / "mbpp.jsonl", MBPP)
    assert "is there already" in desk.refused("benchmarks", "import", "mbpp", "mbpp.jsonl", "--to", "set")


@pytest.mark.slow
def test_the_published_humaneval_is_sound(desk: "Desk") -> None:
    published = ROOT.parent / "shared/data/HumanEval.jsonl.gz"
    if not published.is_file():
        pytest.skip("there is no ../shared/data/HumanEval.jsonl.gz")
    desk.sweep("benchmarks", "import", "humaneval", str(published), "--to", "set")
    words = ("run", "./set", "--agent", "oracle", "--name", "it", "--devboxes", "4")
    desk.start(*words).end(600)
    results = desk.results("runs/it")
    assert (len(results), {each["score"] for each in results}) == (164, {1.0})
