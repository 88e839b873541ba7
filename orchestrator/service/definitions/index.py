"""Names of benchmarks and scenarios below the service's folders; of a scenario nothing is read.

A folder with a `task.toml` is a scenario, one with a `benchmark.toml` or with scenarios in it is a benchmark. Blocking:
a question to the disk for each sub-folder, some 10 microseconds.

All keys of `benchmark.toml` are optional:

name = "…"            the folder's name, if not given; ids of scenarios derive from it
description = "…"
attribution = "…"
[metadata]            strings
[custom_scorers]      type = "file of a bash script, relative to this folder"
"""

import hashlib
import os
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import structlog

from orchestrator.service.content import MAX_TOML, TomlError, complaint, decoded, parse_toml, read_file
from orchestrator.service.definitions.task_file import ScenarioContext
from orchestrator.service.definitions.task_toml import FILE as TASK
from orchestrator.service.diagnostics import Problem, Report, hint, printable, shown, text
from orchestrator.service.store import BENCHMARKS, SCENARIOS, SCORERS, Document

BENCHMARK: Final = "benchmark.toml"
#: Bytes of a custom scorer's script.
MAX_SCRIPT_BYTES: Final = 8 << 20
_KEYS: Final = ("name", "description", "attribution", "metadata", "custom_scorers")
Stamp = tuple[int, int, int, int]
"""Times of the last change of a file's content and of its state, by its file system's clock; its size; its number."""
NOTHING: Final[Stamp] = (0, 0, 0, 0)
#: The longest tick of a file system's clock that is reckoned with.
TICK_NS: Final = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkFile:
    """A benchmark.toml, or its defaults. `custom_scorers` are scripts by type.

    Links in the benchmark must not leave `boundary`. `sources` are the files that were read.
    """

    name: str
    boundary: Path
    description: str | None = None
    attribution: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    custom_scorers: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    sources: tuple[Path, ...] = ()

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def context(self) -> ScenarioContext:
        return ScenarioContext(benchmark=self.name, boundary=self.boundary, custom_scorers=self.custom_scorers)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """A scenario by name; nothing of it was read."""

    id: str
    name: str
    benchmark_id: str
    folder: Path
    context: ScenarioContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark folder by name. `bare` are sub-folders that are not scenarios yet."""

    id: str
    folder: Path
    file: BenchmarkFile
    entries: tuple[CatalogEntry, ...]
    bare: tuple[Path, ...] = ()

    @classmethod
    def read(cls, folder: Path, *, rebuild: bool) -> "Benchmark":
        """Read the benchmark.toml of a folder and list the names of its scenarios."""
        file = read_benchmark(folder)
        identity, context = identify(BENCHMARKS.prefix, file.name), replace(file.context, rebuild=rebuild)
        found, bare = scenario_folders(folder)
        entries = [
            CatalogEntry(
                id=identify(SCENARIOS.prefix, f"{file.name}/{each.name}"),
                name=printable(each.name),
                benchmark_id=identity,
                folder=each,
                context=context,
            )
            for each in found
        ]
        return cls(id=identity, folder=folder, file=file, entries=tuple(entries), bare=tuple(bare))

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def scenario_ids(self) -> list[str]:
        return [entry.id for entry in self.entries]

    def document(self) -> Document:
        """The benchmark as the wire shows it."""
        return {
            "id": self.id,
            "name": self.name,
            "metadata": {**self.file.metadata, "source": "folder"},
            "status": "active",
            "is_public": True,
            "attribution": self.file.attribution,
            "description": self.file.description,
            "scenarioIds": self.scenario_ids,
            "required_environment_variables": [],
            "required_secret_names": [],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomScorer:
    """A custom scorer of a benchmark.toml: the type that it is registered for, as `name`, and its bash script."""

    id: str
    name: str
    script: str

    def document(self) -> Document:
        """The scorer as the store would keep it."""
        return {"id": self.id, "type": self.name, "name": self.name, "bash_script": self.script}


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """All names at one time; `stamps` tell whether it is still that time. `given` are folders by benchmarks' ids."""

    benchmarks: tuple[Benchmark, ...] = ()
    entries: Mapping[str, CatalogEntry] = field(default_factory=dict)
    custom_scorers: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Path] = field(default_factory=dict)
    stamps: tuple[tuple[Path, Stamp], ...] = ()
    is_settled: bool = True

    @property
    def scorers(self) -> list[CustomScorer]:
        scripts = self.custom_scorers.items()
        return [CustomScorer(id=identify(SCORERS.prefix, kind), name=kind, script=script) for kind, script in scripts]

    @property
    def is_current(self) -> bool:
        bare = (folder for benchmark in self.benchmarks for folder in benchmark.bare)
        is_same = self.is_settled and all(_stamp(path) == stamp for path, stamp in self.stamps)
        return is_same and not any(map(is_scenario, bare))


def read_index(folders: Sequence[Path], *, rebuild: bool) -> Index:
    """List names. A benchmark that cannot be used is left out and logged."""
    log = structlog.get_logger()
    started = time.time_ns()
    benchmarks: dict[str, Benchmark] = {}
    stamps: dict[Path, Stamp] = {}
    givers: dict[Path, Path] = {}
    for given in folders:
        inside = benchmark_folders(given)
        stamps |= {path: _stamp(path) for path in (given, *([] if given in inside else sub_folders(given)))}
        for folder in inside:
            givers.setdefault(folder, given)

    for folder in givers:
        benchmark = Benchmark.read(folder, rebuild=rebuild)
        stamps |= {path: _stamp(path) for path in (folder, *benchmark.file.sources)}
        if benchmark.file.errors:
            log.warning("benchmark.broken", folder=printable(folder), mistakes=text(benchmark.file.problems))
        elif benchmark.name in benchmarks:
            other = printable(benchmarks[benchmark.name].folder)
            log.warning("benchmark.name_taken", folder=printable(folder), name=benchmark.name, by=other)
        else:
            benchmarks[benchmark.name] = benchmark

    scorers: dict[str, str] = {}
    for benchmark in benchmarks.values():
        for kind, script in benchmark.file.custom_scorers.items():
            if scorers.setdefault(kind, script) != script:
                log.warning("scorer.type_taken", folder=printable(benchmark.folder), type=kind)
    return Index(
        benchmarks=tuple(benchmarks.values()),
        entries={entry.id: entry for benchmark in benchmarks.values() for entry in benchmark.entries},
        custom_scorers=scorers,
        given={benchmark.id: givers[benchmark.folder] for benchmark in benchmarks.values()},
        stamps=tuple(stamps.items()),
        is_settled=all(is_settled(changed_ns, started) for _, changed_ns, *_ in stamps.values()),
    )


def read_benchmark(folder: Path) -> BenchmarkFile:
    """Read the benchmark.toml that holds for a benchmark folder; a mistake is in `problems`, and has its default.

    A scenario folder is a benchmark of one, which uses the custom scorers of the benchmark around it.
    """
    if not is_scenario(folder):
        return _read_file(folder)
    if not os.path.lexists(folder.parent / BENCHMARK):
        return BenchmarkFile(name=folder.name, boundary=folder)
    file = _read_file(folder.parent)
    return replace(file, name=folder.name, description=None, attribution=None, metadata={})


def _read_file(folder: Path) -> BenchmarkFile:
    report, path = Report(), folder / BENCHMARK
    document: dict[str, Any] = {}
    try:
        document = parse_toml(read_file(path, MAX_TOML)) if os.path.lexists(path) else {}
    except TomlError as error:
        report.error(BENCHMARK, error.key, str(error))
    except OSError as error:
        report.error(BENCHMARK, "", complaint(error))
    for key in document:
        if key not in _KEYS:
            report.error(BENCHMARK, key, "unknown key; " + hint(key, _KEYS, f"known: {', '.join(_KEYS)}"))

    scorers = _strings(document, "custom_scorers", report)
    own = folder.resolve().name
    name = _string(document, "name", report) or printable(own)
    if name != own and "name" not in document:
        report.error(BENCHMARK, "name", f"the folder's name {name} cannot stand for it: write another one here")
    description, attribution = (_string(document, key, report) for key in ("description", "attribution"))
    metadata = _strings(document, "metadata", report)
    scripts = {}
    for kind, file in scorers.items():
        script = Path(os.path.realpath(folder / file))  # unlike `resolve`, it survives links that go round in circles
        if not script.is_relative_to(os.path.realpath(folder)):
            report.error(BENCHMARK, f"custom_scorers.{kind}", f"{shown(file)} leaves the benchmark's folder")
            continue
        try:
            scripts[kind] = decoded(read_file(script, MAX_SCRIPT_BYTES))
        except OSError as error:
            report.error(BENCHMARK, f"custom_scorers.{kind}", f"{shown(file)} {complaint(error)}")
    return BenchmarkFile(
        name=name,
        boundary=folder,
        description=description,
        attribution=attribution,
        metadata=metadata,
        custom_scorers=scripts,
        problems=tuple(report.problems),
        sources=(path, *(folder / file for file in scorers.values())),
    )


def _string(document: Mapping[str, Any], key: str, report: Report) -> str | None:
    value = document.get(key)
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    report.error(BENCHMARK, key, f"expected a string, got {shown(value)}")
    return None


def _strings(document: Mapping[str, Any], key: str, report: Report) -> dict[str, str]:
    value = document.get(key, {})
    if not isinstance(value, Mapping):
        report.error(BENCHMARK, key, f"expected a table, [{key}]")
        return {}
    for name, each in value.items():
        if not isinstance(each, str):
            report.error(BENCHMARK, f"{key}.{name}", f"expected a string, got {shown(each)}")
    return {name: each for name, each in value.items() if isinstance(each, str)}


def is_settled(changed_ns: int, read_ns: int) -> bool:
    """Tell whether a file changed then and read later cannot have been changed since without showing.

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
    """The scenario folders of a benchmark folder, by name, and its other folders."""
    if is_scenario(folder):
        return [folder], []
    found: tuple[list[Path], list[Path]] = ([], [])
    for each in sub_folders(folder):
        found[not (is_scenario(each) or is_closed(each))].append(each)
    return found


def is_scenario(folder: Path) -> bool:
    """Tell whether the folder is meant to be a scenario: mistakes in its files are found when it is read."""
    try:
        return not stat.S_ISDIR(os.lstat(f"{folder}/{TASK}").st_mode)
    except OSError:
        return False


def is_closed(folder: Path) -> bool:
    """Tell whether we may not look into the folder, so that it could be a scenario; lost+found is never one."""
    return folder.name != "lost+found" and not os.access(folder, os.R_OK | os.X_OK)


def _is_benchmark(folder: Path) -> bool:
    has_file = os.path.lexists(folder / BENCHMARK)
    return is_scenario(folder) or has_file or any(map(is_scenario, sub_folders(folder)))


def sub_folders(folder: Path) -> list[Path]:
    """The folders in a folder by name, and the links that lead to one; hidden ones are left out."""
    names: list[str] = []
    try:
        with os.scandir(folder) as found:
            entries = [each for each in found if not each.name.startswith(".")]
    except OSError:
        return []
    for each in entries:
        with suppress(OSError):  # a link that goes round in a circle, or leads where we may not look
            if each.is_dir():
                names.append(each.name)
    return [folder / name for name in sorted(names)]


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return NOTHING
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


def identify(prefix: str, name: str) -> str:
    """The id of a thing with this name, the same wherever and whenever its folder is read."""
    return f"{prefix}_{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:20]}"
