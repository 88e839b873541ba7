"""Benchmarks read from folders, as late and as little as possible.

A folder of ten thousand scenarios must not slow the service's start, so names are all that is listed; a scenario is
read when somebody asks for it, and read again only if its files changed. Ids derive from names, so they are the same
wherever and whenever a folder is read. File work runs in worker threads; what they share is behind locks.

A given folder that held benchmarks and holds none any more is away, not empty: it was moved, or its disk is not there.
What was known of it is the world's fault until it is back; then all is as before.

Other parts of the program come in by this door: `problems`, `benchmark_folders`, `surroundings` are offered here too.
"""

import copy
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from typing import Final

import structlog
from anyio.to_thread import run_sync

from orchestrator.core.errors import UsageError
from orchestrator.service.content import listing
from orchestrator.service.definitions.check import problems
from orchestrator.service.definitions.index import (
    Entry,
    Index,
    benchmark_folders,
    identify,
    is_settled,
    read_index,
    surroundings,
)
from orchestrator.service.definitions.task_file import Scenario, Surroundings, read_scenario
from orchestrator.service.diagnostics import few, printable, text
from orchestrator.service.environments.builds import Blueprint
from orchestrator.service.errors import Away, BadRequest
from orchestrator.service.store import SCORERS, Document

__all__ = ["Catalog", "benchmark_folders", "problems", "surroundings"]

MAX_KEPT: Final = 256
MAX_KEPT_BYTES: Final = 64 << 20
_LOCKS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which scenarios of a list are read, by globs for their names and ids; the others are only named."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def takes(self, entry: Entry) -> bool:
        return (not self.include or _is_named(entry, self.include)) and not _is_named(entry, self.exclude)


EVERYTHING: Final = Choice()


class Catalog:
    """Benchmarks in the given folders: each a benchmark, a single scenario, or a folder of benchmarks.

    Raises UsageError when one of them does not exist.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UsageError(
                    f"There is no folder {folder}: name a folder of benchmarks, a benchmark or a scenario."
                )
        self._folders = tuple(dict.fromkeys(folder.resolve() for folder in folders))
        self._index: Index | None = None
        self._index_lock = Lock()
        self._kept = _Kept()
        self._locks = tuple(Lock() for _ in range(_LOCKS))
        self._blueprints: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()
        #: The given folder that each scenario and benchmark was in, of all that were ever there.
        self._homes: dict[str, Path] = {}

    async def benchmarks(self) -> list[Document]:
        """All benchmarks with the ids of their scenarios."""
        index = await run_sync(self._indexed)
        return [{**each.view, "scenarioIds": list(each.view["scenarioIds"])} for each in index.benchmarks]

    async def entries(self) -> list[Entry]:
        """All scenarios by name, in the order of their benchmarks."""
        return list((await run_sync(self._indexed)).entries.values())

    async def scenario(self, scenario_id: str) -> Document | None:
        """One scenario; None if there is none. Raises BadRequest naming file and key of every mistake in it, and Away.

        Keys of our own: `_parts` are digests of what it consists of, by name, `_scorers` the scripts of its custom
        scorers, `_scoring` is its ScoringPlan. All of it, the digest in its metadata too, is of one reading.
        """
        scenario = await run_sync(self._find, scenario_id)
        if scenario is None:
            return None
        if scenario.errors:
            await self.need_there(scenario_id)
            raise BadRequest(f"Scenario {scenario.view['name']} is not usable: {few(scenario.errors)}.")
        return copy.deepcopy(scenario.view)

    async def need_there(self, identity: str) -> None:
        """Raises Away if the benchmark or scenario was in a folder that is not there now."""
        await run_sync(self._need_there, identity)

    async def scenarios(self, ids: Iterable[str]) -> dict[str, Document]:
        """Those of the scenarios that are here and usable, by id; the others are left out and logged."""
        return await run_sync(self._usable, tuple(ids))

    async def listed(self, ids: Iterable[str], choice: Choice = EVERYTHING) -> dict[str, Document]:
        """All of the scenarios that are here, by id.

        One that cannot run has the reason in its metadata, as `unsupported`. Of one that is not usable, or not chosen
        and so not read, there is nothing else but its names.
        """
        return await run_sync(self._listed, tuple(ids), choice)

    async def folder(self, scenario_id: str) -> Path | None:
        """Where a scenario is."""
        entry = (await run_sync(self._indexed)).entries.get(scenario_id)
        return entry.folder if entry else None

    async def others(self, ids: Iterable[str]) -> list[str]:
        """Those of the ids that are no scenario here, in their order."""
        entries = (await run_sync(self._indexed)).entries
        return [identity for identity in ids if identity not in entries]

    async def custom_scorers(self) -> dict[str, str]:
        """Bash scripts by the type they are registered for."""
        return dict((await run_sync(self._indexed)).custom_scorers)

    async def scorers(self) -> list[Document]:
        """The same as documents."""
        return [
            {"id": identify(SCORERS.prefix, kind), "type": kind, "name": kind, "bash_script": script}
            for kind, script in (await self.custom_scorers()).items()
        ]

    async def owns(self, identity: str) -> bool:
        """Whether the id is one of a benchmark, scenario or scorer here."""
        index = await run_sync(self._indexed)
        others = {each.view["id"] for each in index.benchmarks} | {
            identify(SCORERS.prefix, k) for k in index.custom_scorers
        }
        return identity in index.entries or identity in others

    async def validation_types(self) -> dict[str, str]:
        """How each scenario's reference solution is applied, by id: told from whether there is one."""

        def look() -> dict[str, str]:
            entries = self._indexed().entries
            return {
                identity: "FORWARD" if _has_files(entry.folder / "solution") else "UNSPECIFIED"
                for identity, entry in entries.items()
            }

        return await run_sync(look)

    async def blueprint(self, blueprint_id: str) -> Blueprint | None:
        """The environment with this id, None if no scenario has it (any more)."""
        return await run_sync(self._find_blueprint, blueprint_id)

    def _indexed(self) -> Index:
        with self._index_lock:
            if self._index is None or not self._index.is_current:
                self._index = index = read_index(self._folders)
                self._homes |= index.given
                self._homes |= {entry.id: index.given[entry.benchmark_id] for entry in index.entries.values()}
            return self._index

    def _need_there(self, identity: str) -> None:
        home = self._homes.get(identity)
        if home is not None and not benchmark_folders(home):
            raise Away(f"The folder {printable(home)} is not there, or holds no benchmark any more; put it back.")

    def _find(self, scenario_id: str) -> Scenario | None:
        entry = self._indexed().entries.get(scenario_id)
        if entry is None:
            self._need_there(scenario_id)
            return None
        return self._read(entry)

    def _read(self, entry: Entry) -> Scenario:
        """Read a scenario unless the copy at hand is still right; the same one never twice at a time."""
        with self._locks[hash(entry.id) % _LOCKS]:
            try:
                started = time.time_ns()
                files = listing(entry.folder, entry.around.boundary)
                scenario = self._kept.get(entry, files.stamps)
                if scenario is None:
                    scenario = read_scenario(entry.id, entry.folder, entry.around, files)
                    if is_settled(files.changed_ns, started):
                        self._kept.put(entry, scenario)
            except OSError as error:
                self._need_there(entry.id)
                raise BadRequest(f"Scenario {entry.name} cannot be read: {error.strerror or error}.") from error
            self._blueprints[scenario.blueprint.id] = entry.id
            return scenario

    def _usable(self, ids: Sequence[str]) -> dict[str, Document]:
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

    def _listed(self, ids: Sequence[str], choice: Choice) -> dict[str, Document]:
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
            except Exception as error:  # noqa: BLE001 - what one folder does to its reader is no other's affair
                structlog.get_logger().exception("scenario.unreadable", folder=printable(entry.folder))
                listed[entry.id] = _stub(entry, f"It cannot be read: {printable(repr(error))}.")
            else:
                digest = str(scenario.view["metadata"]["digest"])
                is_usable = not scenario.errors
                listed[entry.id] = (
                    copy.deepcopy(scenario.view) if is_usable else _stub(entry, few(scenario.errors), digest)
                )
        return listed

    def _tell(self, entry: Entry, mistakes: str) -> None:
        """Log a broken scenario once, not at every list."""
        if (entry.id, mistakes) not in self._told:
            self._told.add((entry.id, mistakes))
            structlog.get_logger().warning("scenario.broken", folder=printable(entry.folder), mistakes=mistakes)

    def _find_blueprint(self, blueprint_id: str) -> Blueprint | None:
        known = self._blueprints.get(blueprint_id)
        scenario = self._find(known) if known else None
        if scenario and scenario.blueprint.id == blueprint_id:
            return scenario.blueprint
        return next((each for each in self._all_blueprints() if each.id == blueprint_id), None)

    def _all_blueprints(self) -> Iterator[Blueprint]:
        """Reads one scenario after the other: only for an id that no scenario read so far has."""
        for entry in self._indexed().entries.values():
            try:
                yield self._read(entry).blueprint
            except (BadRequest, Away):
                continue


class _Kept:
    """Scenarios read lately, the one not asked for longest going first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._scenarios: OrderedDict[str, tuple[Surroundings, Scenario]] = OrderedDict()
        self._bytes = 0

    def get(self, entry: Entry, stamps: tuple[tuple[str | int, ...], ...]) -> Scenario | None:
        with self._lock:
            around, scenario = self._scenarios.get(entry.id, (None, None))
            if scenario is None or scenario.stamps != stamps or around != entry.around:
                return None
            self._scenarios.move_to_end(entry.id)
            return scenario

    def put(self, entry: Entry, scenario: Scenario) -> None:
        with self._lock:
            _, old = self._scenarios.pop(entry.id, (None, None))
            self._bytes += scenario.size - (old.size if old else 0)
            self._scenarios[entry.id] = entry.around, scenario
            while len(self._scenarios) > MAX_KEPT or (self._bytes > MAX_KEPT_BYTES and len(self._scenarios) > 1):
                _, (_, gone) = self._scenarios.popitem(last=False)
                self._bytes -= gone.size


def _is_named(entry: Entry, globs: Iterable[str]) -> bool:
    """A name may have brackets in it, so it matches itself whatever it means as a glob."""
    return any(glob == name or fnmatchcase(name, glob) for glob in globs for name in (entry.name, entry.id))


def _stub(entry: Entry, reason: str, digest: str = "") -> Document:
    """What a list shows of a scenario that cannot be shown."""
    metadata = {"benchmark": entry.around.benchmark, "source": "folder", "unsupported": reason, "digest": digest}
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


def _has_files(folder: Path) -> bool:
    try:
        with os.scandir(folder) as found:
            return any(True for _ in found)
    except OSError:
        return False
