"""The interpreter of a Python agent, and the packages that it would find."""

import re
import sys
from pathlib import Path
from typing import Final

from orchestrator.agentkit.builtin import BUILTIN
from orchestrator.agentkit.python.python_agent import find_interpreter, has_module

ROOT: Final = Path(__file__).parents[2]


def test_the_interpreter_is_the_one_given_else_the_active_environments_else_ours(tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "python"
    binary.parent.mkdir()
    binary.symlink_to(sys.executable)
    assert find_interpreter(binary, {}) == binary
    assert find_interpreter(Path("python"), {"PATH": str(binary.parent)}) == binary
    assert find_interpreter(None, {"VIRTUAL_ENV": str(tmp_path)}) == binary
    assert find_interpreter(None, {"VIRTUAL_ENV": str(tmp_path / "gone")}) == Path(sys.executable)
    assert find_interpreter(None, {}) == Path(sys.executable)


def test_a_module_is_found_without_being_imported(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    there = {"PYTHONPATH": str(tmp_path)}
    assert has_module(Path(sys.executable), "mine", there)
    assert not has_module(Path(sys.executable), "mine", {})
    assert not has_module(tmp_path / "no-python", "mine", there)
    assert not (tmp_path / "imported").exists()


def test_the_package_that_mini_needs_is_the_one_that_it_names_and_the_extra_brings() -> None:
    for file in (BUILTIN["mini"].file, ROOT / "pyproject.toml"):
        assert re.findall(r"mini-swe-agent[>=][^'\"]+", file.read_text()) == [BUILTIN["mini"].package]
