"""Problems of such tools: the manual says why they do not happen here, and which test shows it."""

import ast
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "orchestrator" / "docs" / "reliability.md"


def rows() -> list[list[str]]:
    """The table's lines as cells: the pain, what is done about it, the tests."""
    section = PAGE.read_text().partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names_of_tests() -> set[str]:
    trees = (ast.parse(path.read_bytes()) for path in (ROOT / "tests").rglob("test_*.py"))
    functions = (node for tree in trees for node in ast.walk(tree))
    return {node.name for node in functions if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_pain_has_an_answer_and_every_answer_that_can_be_shown_a_test() -> None:
    assert [row[0] for row in rows()] == [str(number) for number in range(1, 31)]
    assert all(len(row) == 4 and row[2] for row in rows())
    named = [name for row in rows() for name in re.findall(r"`(test_\w+)`", row[3])]
    assert set(named) - names_of_tests() == set()
    assert len(named) >= 24, "what a runner can cause is shown, not promised"
