"""The benchmark that comes with the project: sound, in any order, as often as one likes."""

import shutil
import tomllib
from typing import TYPE_CHECKING

import pytest

from orchestrator.commands import BUNDLED

if TYPE_CHECKING:
    from .conftest import Desk

FOLDER = BUNDLED / "bugfix-mini"
SCENARIOS = sorted(path.parent.name for path in FOLDER.glob("*/task.toml"))


def scores_of(desk: "Desk", benchmark: str, *arms: str) -> dict[tuple[str, str], float]:
    """Half as many devboxes as usual: a machine that does other things too may not keep the scorers from ending."""
    words = [word for arm in arms for word in ("--agent", arm)]
    ended = desk.sweep("run", benchmark, *words, "--devboxes", "4")
    results = desk.results(ended.folder)
    assert not [result for result in results if result["flags"] or len(result["attempts"]) > 1]
    return {(result["scenario_name"], result["arm"]): result["score"] for result in results}


@pytest.mark.slow
def test_the_reference_solves_every_bundled_scenario_and_doing_nothing_solves_none(desk: "Desk") -> None:
    scores = scores_of(desk, "bugfix-mini", "oracle", "nop")
    assert scores == {(name, arm): score for name in SCENARIOS for arm, score in (("oracle", 1.0), ("nop", 0.0))}


@pytest.mark.slow
def test_the_reference_solves_them_again_in_the_opposite_order(desk: "Desk") -> None:
    """In a copy under the bundled name, as somebody has who changes it: what is served is the copy."""
    names = [f"{number:02}-{name}" for number, name in enumerate(reversed(SCENARIOS))]
    for name in names:
        shutil.copytree(FOLDER / name[3:], desk.folder / "copy" / name)
    shutil.copy(FOLDER / "benchmark.toml", desk.folder / "copy")
    shutil.copytree(FOLDER / "scorers", desk.folder / "copy" / "scorers")
    assert scores_of(desk, "./copy", "oracle") == {(name, "oracle"): 1.0 for name in names}


def test_the_bundled_benchmark_uses_every_type_of_scorer() -> None:
    assert len(SCENARIOS) >= 24
    used = set()
    for name in SCENARIOS:
        task = tomllib.loads((FOLDER / name / "task.toml").read_text())
        used |= {scorer["type"] for scorer in task.get("scorers", [])}
    types = ("ast_grep", "bash_script", "command", "custom", "python_script", "test_based")
    assert used == {f"{kind}_scorer" for kind in types}
