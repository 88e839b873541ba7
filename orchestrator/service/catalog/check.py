"""The static half of `sweep check`: what is wrong with a folder, found without running anything."""

import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.service.catalog.names import benchmark_folders, scenario_folders, surroundings
from orchestrator.service.catalog.problems import Problem
from orchestrator.service.catalog.taskfile import Surroundings, read_scenario
from orchestrator.service.catalog.tasktoml import FILE as TASK


def problems(folder: Path) -> list[Problem]:
    """Everything that is wrong in a scenario, a benchmark or a folder of benchmarks; files relative to it. Blocking."""
    found: list[Problem] = []
    if not folder.is_dir():
        return [Problem("error", str(folder), "", "is not a folder")]
    benchmarks = benchmark_folders(folder.resolve())
    if not benchmarks:
        return [Problem("error", str(folder), "", f"has no scenario: no folder in it has a {TASK}")]
    for benchmark in benchmarks:
        file, boundary = surroundings(benchmark)
        found += [_placed(each, boundary, folder) for each in file.problems]
        around = Surroundings(benchmark=file.name, boundary=boundary, custom_scorers=file.custom_scorers)
        scenarios, others = scenario_folders(benchmark)
        for scenario in scenarios:
            found += [_placed(each, scenario, folder) for each in _scenario_problems(scenario, around)]
        found += [_placed(each, benchmark, folder) for each in _forgotten(others)]
    return found


def _scenario_problems(folder: Path, around: Surroundings) -> Sequence[Problem]:
    try:
        return read_scenario("", folder, around).problems
    except OSError as error:
        return [Problem("error", "", "", f"cannot be read: {error}")]


def _forgotten(folders: Sequence[Path]) -> list[Problem]:
    """Sub-folders that look like scenarios and are none."""
    return [
        Problem("warning", f"{each.name}/{TASK}", "", "is missing, so the folder is not a scenario")
        for each in folders
        if (each / "instruction.md").is_file()
    ]


def _placed(problem: Problem, base: Path, folder: Path) -> Problem:
    start = os.path.relpath(base, folder.resolve())
    return problem if start == "." else problem._replace(file=os.path.join(start, problem.file))  # noqa: PTH118
