"""Names of benchmarks and scenarios below the service's folders; nothing of a scenario is read.

A folder with a `task.toml` is a scenario, one with a `benchmark.toml` or with scenarios in it is a benchmark. Blocking:
a question to the disk for each sub-folder, some 10 microseconds.
"""

import hashlib
import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from orchestrator.service.definitions.benchmark_file import FILE as BENCHMARK
from orchestrator.service.definitions.benchmark_file import BenchmarkFile, read_benchmark
from orchestrator.service.definitions.task_file import Surroundings
from orchestrator.service.definitions.task_toml import FILE as TASK
from orchestrator.service.diagnostics import printable, text
from orchestrator.service.store import BENCHMARKS, SCENARIOS, Document

Stamp = tuple[int, int, int, int]
"""When a file's content and its state changed last, by its file system's clock; its size; its number."""
NOTHING: Final[Stamp] = (0, 0, 0, 0)
#: The longest tick of a file system's clock that is reckoned with.
TICK_NS: Final = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A scenario by name; nothing of it was read."""

    id: str
    name: str
    benchmark_id: str
    folder: Path
    around: Surroundings


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark folder by name. `bare` are sub-folders that are no scenarios yet."""

    folder: Path
    file: BenchmarkFile
    view: Document
    entries: tuple[Entry, ...]
    bare: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """All names at one time; `stamps` tell whether it is still that time. `given` are folders by benchmarks' ids."""

    benchmarks: tuple[Benchmark, ...] = ()
    entries: Mapping[str, Entry] = field(default_factory=dict)
    custom_scorers: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Path] = field(default_factory=dict)
    stamps: tuple[tuple[Path, Stamp], ...] = ()
    is_settled: bool = True

    @property
    def is_current(self) -> bool:
        bare = (folder for benchmark in self.benchmarks for folder in benchmark.bare)
        is_same = self.is_settled and all(_stamp(path) == stamp for path, stamp in self.stamps)
        return is_same and not any(map(is_scenario, bare))


def read_index(folders: Sequence[Path]) -> Index:
    """List names. A benchmark that cannot be used is left out and logged."""
    started = time.time_ns()
    benchmarks: dict[str, Benchmark] = {}
    stamps: dict[Path, Stamp] = {}
    found = {given: benchmark_folders(given) for given in folders}
    for given, inside in found.items():
        around = [] if given in inside else sub_folders(given)
        stamps |= {path: _stamp(path) for path in (given, *around)}
    for folder in dict.fromkeys(each for inside in found.values() for each in inside):
        benchmark = _read_benchmark(folder)
        stamps |= {path: _stamp(path) for path in (folder, *benchmark.file.sources)}
        name = benchmark.file.name
        if any(problem.severity == "error" for problem in benchmark.file.problems):
            mistakes = text(benchmark.file.problems)
            structlog.get_logger().warning("benchmark.broken", folder=printable(folder), mistakes=mistakes)
        elif name in benchmarks:
            other = printable(benchmarks[name].folder)
            structlog.get_logger().warning("benchmark.name_taken", folder=printable(folder), name=name, by=other)
        else:
            benchmarks[name] = benchmark
    scorers: dict[str, str] = {}
    for benchmark in benchmarks.values():
        for kind, script in benchmark.file.custom_scorers.items():
            if scorers.setdefault(kind, script) != script:
                structlog.get_logger().warning("scorer.type_taken", folder=printable(benchmark.folder), type=kind)
    return Index(
        benchmarks=tuple(benchmarks.values()),
        entries={entry.id: entry for benchmark in benchmarks.values() for entry in benchmark.entries},
        custom_scorers=scorers,
        given={benchmark.view["id"]: _giver(benchmark.folder, found) for benchmark in benchmarks.values()},
        stamps=tuple(stamps.items()),
        is_settled=all(is_settled(changed_ns, started) for _, changed_ns, *_ in stamps.values()),
    )


def _giver(folder: Path, found: Mapping[Path, Sequence[Path]]) -> Path:
    return next(given for given, inside in found.items() if folder in inside)


def is_settled(changed_ns: int, read_ns: int) -> bool:
    """Whether what was changed then and read later cannot have been changed since without showing.

    Clocks of file systems tick: a file that is written, read and written again within a tick has the same times, and
    perhaps the same size. Ticks are some milliseconds long, on old file systems seconds.
    """
    return changed_ns + TICK_NS < read_ns


def benchmark_folders(folder: Path) -> list[Path]:
    """The benchmark folders that a given folder stands for; a scenario's is a benchmark of one."""
    if _is_benchmark(folder):
        return [folder]
    return [each for each in sub_folders(folder) if _is_benchmark(each)]


def scenario_folders(folder: Path) -> tuple[list[Path], list[Path]]:
    """The scenario folders of a benchmark folder, by name, and its folders that are none."""
    if is_scenario(folder):
        return [folder], []
    found: tuple[list[Path], list[Path]] = ([], [])
    for each in sub_folders(folder):
        found[not (is_scenario(each) or is_closed(each))].append(each)
    return found


def surroundings(folder: Path) -> tuple[BenchmarkFile, Path]:
    """What a benchmark folder says of itself, and the folder that links must not leave."""
    if not is_scenario(folder):
        return read_benchmark(folder), folder
    if not os.path.lexists(folder.parent / BENCHMARK):
        return BenchmarkFile(name=folder.name), folder
    file = read_benchmark(folder.parent)
    alone = BenchmarkFile(
        name=folder.name, custom_scorers=file.custom_scorers, problems=file.problems, sources=file.sources
    )
    return alone, folder.parent


def _read_benchmark(folder: Path) -> Benchmark:
    file, boundary = surroundings(folder)
    identity = identify(BENCHMARKS.prefix, file.name)
    around = Surroundings(benchmark=file.name, boundary=boundary, custom_scorers=file.custom_scorers)
    found, bare = scenario_folders(folder)
    entries = tuple(
        Entry(
            id=identify(SCENARIOS.prefix, f"{file.name}/{each.name}"),
            name=printable(each.name),
            benchmark_id=identity,
            folder=each,
            around=around,
        )
        for each in found
    )
    view = {
        "id": identity,
        "name": file.name,
        "metadata": {**file.metadata, "source": "folder"},
        "status": "active",
        "is_public": True,
        "attribution": file.attribution,
        "description": file.description,
        "scenarioIds": [entry.id for entry in entries],
        "required_environment_variables": [],
        "required_secret_names": [],
    }
    return Benchmark(folder=folder, file=file, view=view, entries=entries, bare=tuple(bare))


def is_scenario(folder: Path) -> bool:
    """Whether somebody meant it to be one: what is wrong with its files is found when it is read."""
    try:
        return not stat.S_ISDIR(os.lstat(f"{folder}/{TASK}").st_mode)
    except OSError:
        return False


def is_closed(folder: Path) -> bool:
    """Whether we may not look into it, so that nobody knows whether it is a scenario; lost+found is none."""
    return folder.name != "lost+found" and not os.access(folder, os.R_OK | os.X_OK)


def _is_benchmark(folder: Path) -> bool:
    has_file = os.path.lexists(folder / BENCHMARK)
    return is_scenario(folder) or has_file or any(map(is_scenario, sub_folders(folder)))


def sub_folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            names = sorted(each.name for each in found if not each.name.startswith(".") and _is_folder(each))
    except OSError:
        return []
    return [folder / name for name in names]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Links count that lead to one; one that goes round in a circle, or where we may not look, does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return NOTHING
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


def identify(prefix: str, name: str) -> str:
    return f"{prefix}_{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:20]}"
