"""The static half of `sweep check`: what is wrong with a folder, found without running anything."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from orchestrator.service.content import Contents, Listing, Node, complaint, listing
from orchestrator.service.definitions.index import (
    benchmark_folders,
    is_closed,
    scenario_folders,
    sub_folders,
    surroundings,
)
from orchestrator.service.definitions.self_extracting import MAX_UNPACKED
from orchestrator.service.definitions.task_file import Surroundings, read_scenario
from orchestrator.service.definitions.task_toml import FILE as TASK
from orchestrator.service.diagnostics import Problem, printable

#: Bytes from which on two files that are the same cannot be so by chance.
TELLING: Final = 40


def problems(folder: Path) -> list[Problem]:
    """Everything that is wrong in a scenario, a benchmark or a folder of benchmarks; files relative to it. Blocking."""
    if not folder.is_dir():
        return [Problem("error", printable(folder), "", "is not a folder")]
    if is_closed(folder):
        return [Problem("error", printable(folder), "", "cannot be read: Permission denied")]
    found: list[Problem] = []
    benchmarks = benchmark_folders(folder.resolve())
    if benchmarks != [folder.resolve()]:
        closed = filter(is_closed, sub_folders(folder.resolve()))
        found += [Problem("error", printable(each.name), "", "cannot be read: Permission denied") for each in closed]
    if not benchmarks and not found:
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
        files = listing(folder, around.boundary)
    except OSError as error:
        return [Problem("error", "", "", complaint(error))]
    return [*read_scenario("", folder, around, files).problems, *_leaks(files)]


def _leaks(files: Listing) -> Iterator[Problem]:
    """Files of tests or solutions that the agent would find in its environment. Only files of one size are read."""
    seen: dict[int, list[Node]] = {}
    for node in _telling(files, "environment"):
        seen.setdefault(node.size, []).append(node)
    contents = Contents()
    for node in (*_telling(files, "tests"), *_telling(files, "solution")):
        for other in seen.get(node.size, ()):
            if _are_same(node, other, contents):
                yield Problem(
                    "warning", node.path, "", f"the agent finds this file in its environment, as {other.path}"
                )
                break


def _telling(files: Listing, top: str) -> list[Node]:
    sizes = range(TELLING, MAX_UNPACKED + 1)
    return [
        each for each in files.nodes if each.kind == "file" and each.path.startswith(f"{top}/") and each.size in sizes
    ]


def _are_same(one: Node, other: Node, contents: Contents) -> bool:
    try:
        contents.hash(one)
        contents.hash(other)
    except OSError:  # which is told where it is read
        return False
    return contents.digests[one.place] == contents.digests[other.place]


def _forgotten(folders: Sequence[Path]) -> list[Problem]:
    """Sub-folders that look like scenarios and are none."""
    return [
        Problem("warning", f"{each.name}/{TASK}", "", "is missing, so the folder is not a scenario")
        for each in folders
        if os.path.lexists(each / "instruction.md")
    ]


def _placed(problem: Problem, base: Path, folder: Path) -> Problem:
    start = printable(os.path.relpath(base, folder.resolve()))
    return problem if start == "." else problem._replace(file=os.path.join(start, problem.file))  # noqa: PTH118
