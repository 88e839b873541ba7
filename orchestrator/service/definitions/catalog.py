"""Benchmarks read from folders, as late and as little as possible; and `sweep check`'s static half.

A folder of ten thousand scenarios must not slow the service's start, so names are all that is listed; a scenario is
read when it is asked for, and read again only if its files changed. Ids derive from names, so they are the same
wherever and whenever a folder is read. File work runs in worker threads; the state they share is behind locks.

A given folder that held benchmarks and holds none any more is away, not empty: it was moved, or its disk is not there.
Questions about its scenarios are then failures of the world until it is back.
"""

import copy
import os
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from typing import Final

import structlog
from anyio.to_thread import run_sync

from orchestrator.core.errors import UsageError
from orchestrator.service.content import Contents, Listing, Node, complaint, listing
from orchestrator.service.definitions import index
from orchestrator.service.definitions.index import Benchmark, CatalogEntry, CustomScorer, Index
from orchestrator.service.definitions.self_extracting import MAX_UNPACKED_BYTES
from orchestrator.service.definitions.steps import Steps
from orchestrator.service.definitions.task_file import STATEMENT, Scenario, ScenarioContext, read_scenario
from orchestrator.service.definitions.task_toml import FILE as TASK
from orchestrator.service.diagnostics import Problem, few, printable, text
from orchestrator.service.environments.environments import Blueprint, ImageRecipe
from orchestrator.service.errors import Away, BadRequest
from orchestrator.service.store import Document

MAX_KEPT: Final = 256
MAX_KEPT_BYTES: Final = 64 << 20
_LOCKS: Final = 16
#: Bytes from which on two files with the same content cannot have it by chance.
_TELLING: Final = range(40, MAX_UNPACKED_BYTES + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A selection of scenarios by globs for their names and ids; in a list the others are only named."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def takes(self, entry: CatalogEntry) -> bool:
        """Tell whether the scenario is selected. A name may have brackets in it, so it also matches itself."""

        def is_named(globs: Iterable[str]) -> bool:
            names = (entry.name, entry.id)
            return any(glob == name or fnmatchcase(name, glob) for glob in globs for name in names)

        return (not self.include or is_named(self.include)) and not is_named(self.exclude)


EVERYTHING: Final = Choice()


class Catalog:
    """Benchmarks in the given folders: each a benchmark, a single scenario, or a folder of benchmarks.

    With `rebuild`, an environment/Dockerfile is built also where an image is named.
    Raises UsageError when one of them does not exist.
    """

    def __init__(self, folders: Sequence[Path], *, rebuild: bool = False) -> None:
        for folder in folders:
            if not folder.is_dir():
                wanted = "name a folder of benchmarks, a benchmark or a scenario"
                raise UsageError(f"There is no folder {folder}: {wanted}.")
        self._folders = tuple(dict.fromkeys(folder.resolve() for folder in folders))
        self._rebuild = rebuild
        self._index: Index | None = None
        self._index_lock = Lock()
        self._cache = _ScenarioCache()
        self._locks = tuple(Lock() for _ in range(_LOCKS))
        self._blueprints: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()
        #: The given folder that each scenario and benchmark was in, of all that were ever there.
        self._homes: dict[str, Path] = {}

    async def benchmarks(self) -> list[Benchmark]:
        """Return all benchmarks with the names of their scenarios."""
        return list((await run_sync(self._indexed)).benchmarks)

    async def entries(self) -> list[CatalogEntry]:
        """Return all scenarios by name, in the order of their benchmarks."""
        return list((await run_sync(self._indexed)).entries.values())

    async def scenario(self, scenario_id: str) -> Document | None:
        """Return one scenario as the wire shows it; None if it does not exist.

        Keys that the wire does not show: `_parts` are digests of its parts by name, `_scorers` the scripts of its
        custom scorers, `_scoring` is its ScoringPlan, `_unsupported` the reason, if any, why it cannot run here. All
        values, the digest in its metadata too, are of one reading. Raises BadRequest naming file and key of every
        mistake in it, and Away.
        """
        scenario = await run_sync(self._find, scenario_id)
        if scenario is None:
            return None
        if scenario.errors:
            await self.need_there(scenario_id)
            raise BadRequest(f"Scenario {scenario.name} is not usable: {few(scenario.errors)}.")
        return copy.deepcopy(scenario.view)

    async def need_there(self, identity: str) -> None:
        """Raise Away if the benchmark or scenario was in a folder that is not there now."""
        await run_sync(self._need_there, identity)

    async def scenarios(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return the scenarios that are here and usable, by id; the others are left out and logged."""

        def look() -> dict[str, Document]:
            entries, usable = self._indexed().entries, {}
            for identity in ids:
                entry = entries.get(identity)
                if entry is None:
                    continue
                try:
                    scenario = self._read(entry)
                    mistakes = text(scenario.errors)
                except (BadRequest, Away) as error:
                    mistakes = error.message
                if mistakes:
                    self._tell(entry, mistakes)
                else:
                    usable[identity] = copy.deepcopy(scenario.view)
            return usable

        return await run_sync(look)

    async def listed(self, ids: Sequence[str], choice: Choice = EVERYTHING) -> dict[str, Document]:
        """Return all scenarios that are here, by id.

        A scenario that cannot run has the reason in its metadata, as `unsupported`. One that is not usable, or not
        chosen and so not read, has its names and nothing else.
        """

        def look() -> dict[str, Document]:
            entries, listed = self._indexed().entries, {}
            for entry in filter(None, map(entries.get, ids)):
                if not choice.takes(entry):
                    listed[entry.id] = _stub(entry, "it is left out, and so it was not read")
                    continue
                try:
                    scenario = self._read(entry)
                except BadRequest as error:
                    listed[entry.id] = _stub(entry, error.message)
                except Away as error:
                    self._tell(entry, error.message)
                except Exception as error:  # noqa: BLE001 - one folder's failure hides no other
                    structlog.get_logger().exception("scenario.unreadable", folder=printable(entry.folder))
                    listed[entry.id] = _stub(entry, f"It cannot be read: {printable(repr(error))}.")
                else:
                    if scenario.errors:
                        listed[entry.id] = _stub(entry, few(scenario.errors), scenario.digest)
                    else:
                        listed[entry.id] = copy.deepcopy(scenario.view)
            return listed

        return await run_sync(look)

    async def others(self, ids: Iterable[str]) -> list[str]:
        """Return the ids that are not of a scenario here, in their order."""
        entries = (await run_sync(self._indexed)).entries
        return [identity for identity in ids if identity not in entries]

    async def custom_scorers(self) -> dict[str, str]:
        """Return bash scripts by the type they are registered for."""
        return dict((await run_sync(self._indexed)).custom_scorers)

    async def scorers(self) -> list[CustomScorer]:
        """Return the same as records."""
        return (await run_sync(self._indexed)).scorers

    async def owns(self, identity: str) -> bool:
        """Tell whether the id is one of a benchmark, scenario or scorer here."""
        found = await run_sync(self._indexed)
        others = {each.id for each in found.benchmarks} | {each.id for each in found.scorers}
        return identity in found.entries or identity in others

    async def validation_types(self) -> dict[str, str]:
        """Return the use of each scenario's reference solution, by id: FORWARD if it has files, else UNSPECIFIED."""

        def look() -> dict[str, str]:
            types = {}
            for identity, entry in self._indexed().entries.items():
                types[identity] = "UNSPECIFIED"
                with suppress(OSError), os.scandir(entry.folder / "solution") as found:
                    types[identity] = "FORWARD" if any(found) else "UNSPECIFIED"
            return types

        return await run_sync(look)

    async def blueprint(self, blueprint_id: str) -> Blueprint | None:
        """Return the environment with this id; None if no scenario has it, or not any more."""

        def look() -> Blueprint | None:
            known = self._blueprints.get(blueprint_id)
            scenario = self._find(known) if known else None
            if scenario and (found := scenario.blueprints.get(blueprint_id)):
                return found
            for entry in self._indexed().entries.values():  # slow, and only for an id that no scenario read so far has
                with suppress(BadRequest, Away):
                    if found := self._read(entry).blueprints.get(blueprint_id):
                        return found
            return None

        return await run_sync(look)

    def _indexed(self) -> Index:
        with self._index_lock:
            if self._index is None or not self._index.is_current:
                self._index = found = index.read_index(self._folders, rebuild=self._rebuild)
                self._homes |= found.given
                self._homes |= {entry.id: found.given[entry.benchmark_id] for entry in found.entries.values()}
            return self._index

    def _need_there(self, identity: str) -> None:
        home = self._homes.get(identity)
        if home is not None and not index.benchmark_folders(home):
            raise Away(f"The folder {printable(home)} is not there, or holds no benchmark any more; put it back.")

    def _find(self, scenario_id: str) -> Scenario | None:
        entry = self._indexed().entries.get(scenario_id)
        if entry is None:
            self._need_there(scenario_id)
            entry = self._indexed().entries.get(scenario_id)  # its folder may have come back between the two looks
        return None if entry is None else self._read(entry)

    def _read(self, entry: CatalogEntry) -> Scenario:
        """Read a scenario unless the cached one is still right; the same one never twice at a time."""
        with self._locks[hash(entry.id) % _LOCKS]:
            try:
                started = time.time_ns()
                files = listing(entry.folder, entry.context.boundary)
                scenario = self._cache.get(entry, files.stamps)
                if scenario is None:
                    scenario = read_scenario(entry.id, entry.folder, entry.context, files)
                    if index.is_settled(files.changed_ns, started):
                        self._cache.put(entry, scenario)
            except OSError as error:
                self._need_there(entry.id)
                raise BadRequest(f"Scenario {entry.name} cannot be read: {error.strerror or error}.") from error
            self._blueprints |= dict.fromkeys(scenario.blueprints, entry.id)
            return scenario

    def _tell(self, entry: CatalogEntry, mistakes: str) -> None:
        """Log a broken scenario once, not at every list."""
        if (entry.id, mistakes) not in self._told:
            self._told.add((entry.id, mistakes))
            structlog.get_logger().warning("scenario.broken", folder=printable(entry.folder), mistakes=mistakes)


class _ScenarioCache:
    """Scenarios that were read; the one least recently used is dropped first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._scenarios: OrderedDict[str, tuple[ScenarioContext, Scenario]] = OrderedDict()
        self._bytes = 0

    def get(self, entry: CatalogEntry, stamps: tuple[tuple[str | int, ...], ...]) -> Scenario | None:
        with self._lock:
            context, scenario = self._scenarios.get(entry.id, (None, None))
            if scenario is None or scenario.stamps != stamps or context != entry.context:
                return None
            self._scenarios.move_to_end(entry.id)
            return scenario

    def put(self, entry: CatalogEntry, scenario: Scenario) -> None:
        with self._lock:
            _, old = self._scenarios.pop(entry.id, (None, None))
            self._bytes += scenario.size - (old.size if old else 0)
            self._scenarios[entry.id] = entry.context, scenario
            while len(self._scenarios) > MAX_KEPT or (self._bytes > MAX_KEPT_BYTES and len(self._scenarios) > 1):
                _, (_, gone) = self._scenarios.popitem(last=False)
                self._bytes -= gone.size


def _stub(entry: CatalogEntry, reason: str, digest: str = "") -> Document:
    """Return the place of a scenario in a list that cannot show more of it."""
    metadata = {"benchmark": entry.context.benchmark, "source": "folder", "unsupported": reason, "digest": digest}
    return {
        "id": entry.id,
        "name": entry.name,
        "metadata": metadata,
        "status": "active",
        "is_public": True,
        "input_context": {"problem_statement": ""},
        "scoring_contract": {"scoring_function_parameters": []},
        "required_environment_variables": [],
        "required_secret_names": [],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedScenario:
    """A scenario that was read for a check; files of `problems` are relative to its folder, which is `name`.

    `images` are how the images of its environments are made; `users` are those of task.toml that are not the images'
    own.
    """

    name: str
    problems: tuple[Problem, ...]
    images: tuple[ImageRecipe, ...] = ()
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check found in a folder: its scenarios, and the `problems` beside them, whose files are relative to it."""

    scenarios: tuple[CheckedScenario, ...] = ()
    problems: tuple[Problem, ...] = ()


def problems(folder: Path) -> list[Problem]:
    """Return all mistakes in a scenario, a benchmark or a folder of benchmarks; files relative to it. Blocking."""
    found = checked(folder)
    inside = [
        each._replace(file=os.path.join(scenario.name, each.file) if scenario.name != "." else each.file)  # noqa: PTH118
        for scenario in found.scenarios
        for each in scenario.problems
    ]
    return [*found.problems, *inside]


def checked(folder: Path) -> Checked:
    """Read a scenario, a benchmark or a folder of benchmarks. Blocking."""
    if not folder.is_dir():
        return Checked(problems=(Problem("error", printable(folder), "", "is not a folder"),))
    if index.is_closed(folder):
        return Checked(problems=(Problem("error", printable(folder), "", "cannot be read: Permission denied"),))
    home = folder.resolve()
    found: list[Problem] = []
    scenarios: list[CheckedScenario] = []

    def add(base: Path, inside: Iterable[Problem]) -> None:
        """Add problems of a folder further down, or further up."""
        start = printable(os.path.relpath(base, home))
        if start != ".":
            inside = [each._replace(file=os.path.join(start, each.file)) for each in inside]  # noqa: PTH118
        found.extend(inside)

    benchmarks = index.benchmark_folders(home)
    for each in index.sub_folders(home) if benchmarks != [home] else ():
        if index.is_closed(each):
            add(home, [Problem("error", printable(each.name), "", "cannot be read: Permission denied")])
    if not benchmarks and not found:
        return Checked(problems=(Problem("error", str(folder), "", f"has no scenario: no folder in it has a {TASK}"),))
    for benchmark in benchmarks:
        file = index.read_benchmark(benchmark)
        add(file.boundary, file.problems)
        inside, others = index.scenario_folders(benchmark)
        for place in inside:
            name = printable(os.path.relpath(place, home))
            try:
                files = listing(place, file.boundary)
                scenario = read_scenario("", place, file.context, files)
            except OSError as error:
                problem = Problem("error", "", "", complaint(error))
                scenarios.append(CheckedScenario(name=name, problems=(problem,)))
                continue
            scenarios.append(
                CheckedScenario(
                    name=name,
                    problems=(*scenario.problems, *_leaks(files)),
                    images=tuple(each.image for each in scenario.blueprints.values() if each.image),
                    users=tuple(filter(None, _users(scenario))),
                )
            )
        for each in others:
            if os.path.lexists(each / STATEMENT):
                why = "is missing, so the folder is not a scenario"
                add(benchmark, [Problem("warning", f"{each.name}/{TASK}", "", why)])
    return Checked(scenarios=tuple(scenarios), problems=tuple(found))


def _users(scenario: Scenario) -> Iterator[str]:
    """Yield the users that a task names."""
    for blueprint in scenario.blueprints.values():
        yield from (blueprint.agent_user, blueprint.verifier_user)
    several: Steps = scenario.view.get("_steps", Steps())
    for plan in (scenario.view["_scoring"], *(each.plan for each in several.steps)):
        yield from (plan.user or "", *(each.user for each in plan.collect))


def _leaks(files: Listing) -> Iterator[Problem]:
    """Yield files of tests or solutions that the agent would find in its environment; reads only files of one size."""
    shown: defaultdict[int, list[Node]] = defaultdict(list)
    hidden: list[Node] = []
    for node in files.nodes:
        top = node.path.partition("/")[0]
        if node.kind == "file" and node.size in _TELLING and top in {"environment", "tests", "solution"}:
            (shown[node.size] if top == "environment" else hidden).append(node)
    contents = Contents()
    for node in hidden:
        for other in shown.get(node.size, ()):
            with suppress(OSError):  # which is reported where it is read
                contents.hash(node)
                contents.hash(other)
                if contents.digests[node.place] == contents.digests[other.place]:
                    why = f"the agent finds this file in its environment, as {other.path}"
                    yield Problem("warning", node.path, "", why)
                    break
