"""Every definition that the service knows: benchmarks, scenarios and custom scorers of folders and of clients.

Two sources, one answer: definitions that clients create live in the store, those of folders are read by the catalog and
cannot be changed here. No other module asks either source, so that no route forgets one of the two.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec
import orjson
from anyio.to_thread import run_sync

from orchestrator.service.definitions.catalog import EVERYTHING, Catalog, Choice
from orchestrator.service.definitions.index import CatalogEntry
from orchestrator.service.definitions.merged_list import MergedList, fill, reader
from orchestrator.service.definitions.scoring_plan import ScoringPlan
from orchestrator.service.errors import BadRequest, NotFound
from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.store import (
    BENCHMARKS,
    SCENARIOS,
    SCORERS,
    Document,
    Filters,
    ListQuery,
    Page,
    Store,
    Table,
)

SCORER_TIMEOUT_S: Final = 1800
VALIDATION_TYPES: Final = ("UNSPECIFIED", "FORWARD", "REVERSE", "EVALUATION")
_SHARED_FIELDS: Final = {
    name: name for name in ("name", "metadata", "required_environment_variables", "required_secret_names")
}
_BENCHMARK_FIELDS: Final = {
    **_SHARED_FIELDS,
    "attribution": "attribution",
    "description": "description",
    "scenario_ids": "scenarioIds",
}
_SCENARIO_FIELDS: Final = {
    **_SHARED_FIELDS,
    "input_context": "input_context",
    "scoring_contract": "scoring_contract",
    "environment_parameters": "environment",
    "reference_output": "reference_output",
    "scorer_timeout_sec": "scorer_timeout_sec",
    "validation_type": "validation_type",
}
#: Fields of a scenario that decide the work and its score; name and labels do not.
_DECIDING: Final = (
    "input_context",
    "scoring_contract",
    "environment",
    "reference_output",
    "scorer_timeout_sec",
    "required_environment_variables",
    "required_secret_names",
)


class _StoredScorer(msgspec.Struct):
    id: str
    type: str
    bash_script: str


class _ContractScorer(msgspec.Struct):
    type: str
    custom_scorer_type: str = ""


class _ContractFunction(msgspec.Struct):
    scorer: _ContractScorer


class _Contract(msgspec.Struct):
    scoring_function_parameters: list[_ContractFunction]


class _Environment(msgspec.Struct):
    working_directory: str | None = None


class _StoredScenario(msgspec.Struct):
    """The keys of a stored scenario that are read here."""

    scoring_contract: _Contract
    metadata: dict[str, str]
    status: str
    environment: _Environment | None = None


def _stored_scorers(db: sqlite3.Connection, filters: Filters) -> list[_StoredScorer]:
    return msgspec.convert(SCORERS.select(db, filters), list[_StoredScorer])


def _stored_scenario(document: Document) -> _StoredScenario:
    return msgspec.convert(document, _StoredScenario)


def _members(benchmark: Document) -> list[str]:
    ids: list[str] = benchmark["scenarioIds"]
    return ids


class Definitions:
    """Documents in, documents out; fields have the wire's names, and a field that is None keeps its value."""

    def __init__(self, *, store: Store, catalog: Catalog, scoring: Scoring) -> None:
        self._store = store
        self._catalog = catalog
        self._scoring = scoring

    async def benchmark(self, identity: str) -> Document:
        """One benchmark. Raises NotFound, and Away while the folder it was in is not there."""
        for known in await self._catalog.benchmarks():
            if known.id == identity:
                return known.document()
        await self._catalog.need_there(identity)
        return await self._store.read(lambda db: BENCHMARKS.get(db, identity))

    async def scenario(self, identity: str) -> Document:
        """One scenario, with a `digest` in its metadata that changes when a part of it does that decides scores.

        It has the keys that `Catalog.scenario` describes. Raises NotFound, Away while the folder it was in is not
        there, and BadRequest naming file and key of a mistake in its folder.
        """
        known = await self._catalog.scenario(identity)
        if known is not None:
            return known
        scripts = await self._catalog.custom_scorers()
        return await self._store.read(lambda db: _digested(db, SCENARIOS.get(db, identity), scripts))

    async def scorer(self, identity: str) -> Document:
        """One custom scorer. Raises NotFound."""
        for known in await self._catalog.scorers():
            if known.id == identity:
                return known.document()
        return await self._store.read(lambda db: SCORERS.get(db, identity))

    async def definitions(self, benchmark_id: str, query: ListQuery, choice: Choice = EVERYTHING) -> Document:
        """Scenarios of a benchmark in its own order: {scenarios, has_more, total_count}. Raises NotFound.

        Scenarios that are not chosen are not read; they, and those that cannot run, are as `Catalog.listed` describes.
        """

        async def read(ids: Sequence[str]) -> list[Document]:
            return await self._read_all(ids, await self._catalog.listed(ids, choice))

        ids = _members(await self.benchmark(benchmark_id))
        left, after = ids, query.starting_after
        if after:
            if after not in ids:
                raise NotFound(f"starting_after: benchmark {benchmark_id} has no scenario {after!r}.")
            left = ids[ids.index(after) + 1 :]
        scenarios, rest = await fill(left, query.limit, read)
        return {"scenarios": scenarios, "has_more": bool(rest), "total_count": len(ids)}

    async def benchmarks(
        self, query: ListQuery, *, name: str | None = None, public_only: bool = False
    ) -> Page[Document]:
        """A page of benchmarks; `public_only` are the catalog's."""
        known = await self._catalog.benchmarks()
        merged = MergedList(
            store=self._store,
            table=BENCHMARKS,
            filters={"status": "active", "name": name},
            is_stored_shown=not public_only,
            named=known,
            is_match=lambda each: name in {None, each.name},
            read=reader(known),
        )
        return await merged.page(query)

    async def scenarios(
        self,
        query: ListQuery,
        *,
        name: str | None = None,
        benchmark_id: str | None = None,
        validation_type: str | None = None,
        public_only: bool = False,
    ) -> Page[Document]:
        """A page of active scenarios; `public_only` are the catalog's. Raises NotFound for an unknown benchmark."""
        members = None if benchmark_id is None else _members(await self.benchmark(benchmark_id))
        inside = None if members is None else set(members)
        types = await self._catalog.validation_types() if validation_type else {}
        scripts = await self._catalog.custom_scorers()

        def is_match(entry: CatalogEntry) -> bool:
            is_named, is_inside = name in {None, entry.name}, inside is None or entry.id in inside
            return is_named and is_inside and validation_type in {None, types.get(entry.id)}

        async def read(ids: Sequence[str]) -> list[Document]:
            return await self._read_all(ids, await self._catalog.scenarios(ids))

        merged = MergedList(
            store=self._store,
            table=SCENARIOS,
            filters={"status": "active", "name": name, "id": members, "validation_type": validation_type},
            is_stored_shown=not public_only,
            named=await self._catalog.entries(),
            is_match=is_match,
            read=read,
            shown=lambda db, document: _digested(db, document, scripts),
        )
        return await merged.page(query)

    async def scorers(self, query: ListQuery) -> Page[Document]:
        """A page of custom scorers."""
        known = await self._catalog.scorers()
        merged = MergedList(
            store=self._store, table=SCORERS, filters={}, named=known, is_match=lambda _: True, read=reader(known)
        )
        return await merged.page(query)

    async def create_benchmark(self, fields: Mapping[str, Any], key: str | None) -> Document:
        """Create a benchmark. Raises BadRequest for a missing name, and NotFound naming unknown scenarios."""
        _need_name(fields, "benchmark", is_new=True)
        wanted = await self._catalog.others(fields.get("scenario_ids") or ())

        def create(db: sqlite3.Connection) -> Document:
            _need_scenarios(db, wanted)
            document = {**_new(BENCHMARKS), "scenarioIds": [], **_given(fields, _BENCHMARK_FIELDS)}
            BENCHMARKS.insert(db, document)
            return document

        return await self._once(key, create)

    async def update_benchmark(self, identity: str, fields: Mapping[str, Any]) -> Document:
        """Replace the fields given. Raises NotFound and BadRequest as `create_benchmark` does."""
        await self._need_created(BENCHMARKS, identity)
        wanted = await self._catalog.others(fields.get("scenario_ids") or ())
        _need_name(fields, "benchmark", is_new=False)

        def update(db: sqlite3.Connection) -> Document:
            _need_scenarios(db, wanted)
            return BENCHMARKS.update(db, identity, _given(fields, _BENCHMARK_FIELDS))

        return await self._store.write(update)

    async def update_benchmark_scenarios(
        self, identity: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()
    ) -> Document:
        """Add scenarios at the end, unless they are in it already, and remove others."""
        await self._need_created(BENCHMARKS, identity)
        wanted, removed = await self._catalog.others(add), set(remove)

        def update(db: sqlite3.Connection) -> Document:
            _need_scenarios(db, wanted)
            ids = dict.fromkeys([*_members(BENCHMARKS.get(db, identity)), *add])
            left = [scenario for scenario in ids if scenario not in removed]
            return BENCHMARKS.update(db, identity, {"scenarioIds": left})

        return await self._store.write(update)

    async def create_scenario(self, fields: Mapping[str, Any], key: str | None) -> Document:
        """Create a scenario. Raises BadRequest naming the key that is missing or wrong."""
        _need_name(fields, "scenario", is_new=True)
        for required in ("input_context", "scoring_contract"):
            if fields.get(required) is None:
                raise BadRequest(f"{required}: a scenario needs one.")
        await self._check_scenario(fields)
        defaults = {"scorer_timeout_sec": SCORER_TIMEOUT_S, "validation_type": "UNSPECIFIED"}

        def create(db: sqlite3.Connection) -> Document:
            document = {**_new(SCENARIOS), **defaults, **_given(fields, _SCENARIO_FIELDS)}
            SCENARIOS.insert(db, document)
            return document

        return await self._once(key, create)

    async def update_scenario(self, identity: str, fields: Mapping[str, Any]) -> Document:
        """Replace the fields given. Raises NotFound, and BadRequest for wrong fields or an archived scenario."""
        await self._need_created(SCENARIOS, identity)
        _need_name(fields, "scenario", is_new=False)
        await self._check_scenario(fields)

        def update(db: sqlite3.Connection) -> Document:
            if _stored_scenario(SCENARIOS.get(db, identity)).status == "archived":
                raise BadRequest(f"Scenario {identity} is archived and cannot be updated; create another one.")
            return SCENARIOS.update(db, identity, _given(fields, _SCENARIO_FIELDS))

        return await self._store.write(update)

    async def archive_scenario(self, identity: str) -> Document:
        """Remove a scenario from lists. Idempotent. Raises NotFound, and BadRequest for one of the catalog."""
        return await self._set_status(identity, "archived")

    async def unarchive_scenario(self, identity: str) -> Document:
        """Show a scenario in lists again. Idempotent. Raises NotFound, and BadRequest for one of the catalog."""
        return await self._set_status(identity, "active")

    async def create_scorer(self, fields: Mapping[str, Any], key: str | None) -> Document:
        """Register a bash script for a type. Raises BadRequest when the type is taken or a field is missing."""
        scorer_type, script = fields.get("type"), fields.get("bash_script")
        if not scorer_type or not script:
            raise BadRequest("type, bash_script: a scorer needs both.")
        await self._need_free_type(scorer_type)

        def create(db: sqlite3.Connection) -> Document:
            _need_unused_type(db, scorer_type, None)
            document = {"id": SCORERS.new_id(), "type": scorer_type, "name": scorer_type, "bash_script": script}
            SCORERS.insert(db, document)
            return document

        return await self._once(key, create)

    async def update_scorer(self, identity: str, fields: Mapping[str, Any]) -> Document:
        """Replace type and script. Raises NotFound, and BadRequest when the type is taken."""
        await self._need_created(SCORERS, identity)
        scorer_type, script = fields.get("type") or None, fields.get("bash_script") or None
        if scorer_type:
            await self._need_free_type(scorer_type)

        def update(db: sqlite3.Connection) -> Document:
            before = msgspec.convert(SCORERS.get(db, identity), _StoredScorer)
            kind = scorer_type or before.type
            _need_unused_type(db, kind, identity)
            changes = {"type": kind, "name": kind, "bash_script": script or before.bash_script}
            return SCORERS.update(db, identity, changes)

        return await self._store.write(update)

    async def _once(self, key: str | None, change: Callable[[sqlite3.Connection], Document]) -> Document:
        document, _ = await self._store.once(key, Document, change)
        return document

    async def _set_status(self, identity: str, status: str) -> Document:
        await self._need_created(SCENARIOS, identity)
        return await self._store.write(lambda db: SCENARIOS.update(db, identity, {"status": status}))

    async def _check_scenario(self, fields: Mapping[str, Any]) -> None:
        context, contract = fields.get("input_context"), fields.get("scoring_contract")
        if context is not None and not str(context.get("problem_statement") or "").strip():
            raise BadRequest("input_context.problem_statement: a scenario needs one, and it cannot be empty.")
        if fields.get("validation_type") not in (None, *VALIDATION_TYPES):
            raise BadRequest(f"validation_type: expected one of {', '.join(VALIDATION_TYPES)}.")
        if (timeout := fields.get("scorer_timeout_sec")) is not None and timeout <= 0:
            raise BadRequest("scorer_timeout_sec: expected a number of seconds above 0.")
        environment = fields.get("environment_parameters") or {}
        if environment.get("snapshot_id") and environment.get("blueprint_id"):
            raise BadRequest("environment_parameters.snapshot_id: give it or blueprint_id, not both.")
        directory = environment.get("working_directory") or ""
        if "\0" in directory or ".." in PurePosixPath(directory).parts:
            raise BadRequest("environment_parameters.working_directory: expected the path of a folder, without '..'.")
        if contract is not None:
            stored = await self._store.read(lambda db: [each.type for each in _stored_scorers(db, {})])
            custom_types = {*stored, *await self._catalog.custom_scorers()}
            await run_sync(self._scoring.check, contract, custom_types)

    async def _read_all(self, ids: Sequence[str], known: Mapping[str, Document]) -> list[Document]:
        """The scenarios that the catalog knows, and those of the store, in the order of the ids."""
        others = await self._catalog.others(ids)
        scripts = await self._catalog.custom_scorers() if others else {}

        def read(db: sqlite3.Connection) -> dict[str, Document]:
            found = ((identity, SCENARIOS.find(db, identity)) for identity in others)
            return {identity: _digested(db, document, scripts) for identity, document in found if document is not None}

        documents = {**known, **(await self._store.read(read) if others else {})}
        return [documents[identity] for identity in ids if identity in documents]

    async def _need_created(self, table: Table[Document], identity: str) -> None:
        """Raise BadRequest when the definition comes from a folder."""
        if await self._catalog.owns(identity):
            raise BadRequest(f"The {table.noun} {identity} comes from a folder and is read-only here: edit its files.")

    async def _need_free_type(self, scorer_type: str) -> None:
        if scorer_type in await self._catalog.custom_scorers():
            raise BadRequest(f"type: {scorer_type!r} is registered by a benchmark's folder; choose another name.")


def _digested(db: sqlite3.Connection, scenario: Document, scripts: Mapping[str, str]) -> Document:
    """A stored scenario with the keys that `Catalog.scenario` describes; `scripts` are the catalog's custom scorers."""
    stored = _stored_scenario(scenario)
    scorers = [function.scorer for function in stored.scoring_contract.scoring_function_parameters]
    kinds = [scorer.custom_scorer_type for scorer in scorers if scorer.type == "custom_scorer"]
    created = _stored_scorers(db, {"type": kinds}) if kinds else []
    known = {**{scorer.type: scorer.bash_script for scorer in created}, **scripts}
    own = {kind: known[kind] for kind in kinds if kind in known}

    values = {name: scenario.get(name) for name in _DECIDING}
    values |= {"agent_timeout_sec": stored.metadata.get("agent_timeout_sec")}
    values |= {f"custom scorer {kind}": script for kind, script in own.items()}
    parts = {name: _hash(value) for name, value in values.items()}
    metadata = {**stored.metadata, "digest": _hash(parts)}
    return {**scenario, "metadata": metadata, "_parts": parts, "_scorers": own, "_scoring": ScoringPlan()}


def _hash(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _new(table: Table[Document]) -> Document:
    """The keys that every definition has from its creation."""
    return {
        "id": table.new_id(),
        "metadata": {},
        "status": "active",
        "is_public": False,
        "required_environment_variables": [],
        "required_secret_names": [],
    }


def _given(fields: Mapping[str, Any], names: Mapping[str, str]) -> Document:
    """The fields that have a value, by the document's names."""
    return {spelt: fields[name] for name, spelt in names.items() if fields.get(name) is not None}


def _need_name(fields: Mapping[str, Any], noun: str, *, is_new: bool) -> None:
    name = fields.get("name")
    if (is_new or name is not None) and not str(name or "").strip():
        raise BadRequest(f"name: a {noun} needs one, and it cannot be empty.")


def _need_scenarios(db: sqlite3.Connection, ids: Sequence[str]) -> None:
    unknown = [identity for identity in ids if SCENARIOS.find(db, identity) is None]
    if unknown:
        raise NotFound(f"scenario_ids: there is no scenario with id {', '.join(map(repr, unknown))}.")


def _need_unused_type(db: sqlite3.Connection, scorer_type: str, own: str | None) -> None:
    for other in _stored_scorers(db, {"type": scorer_type}):
        if other.id != own:
            raise BadRequest(f"type: {scorer_type!r} is registered already, as {other.id}; update that one.")
