"""Environments, built once and kept: a blueprint's id names what a devbox starts from, for as long as the cache lives.

An entry is a folder that appears by one rename, so a build that is cancelled or killed leaves none. It says how much it
holds, and that is compared the first time a process uses it: what a crash of the machine or a careless hand left torn
is built again.
"""

import hashlib
import os
from pathlib import Path
from secrets import token_hex
from typing import Final

import anyio
import orjson
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.content import digest
from orchestrator.service.definitions.blueprints import Blueprint
from orchestrator.service.definitions.catalog import Catalog
from orchestrator.service.diagnostics import text
from orchestrator.service.environments.builds import Build, with_path
from orchestrator.service.environments.single_flight import Flights
from orchestrator.service.errors import NotFound
from orchestrator.service.sandbox.prepared import Healthcheck, Prepared
from orchestrator.service.sandbox.provider import BoxStartFailed, Provider, Resources
from orchestrator.service.sandbox.safe_fs import amount, remove

BUILDS: Final = 4
REMOVE_TIME: Final = 60
_FACTS: Final = "environment.json"
_BUILDING: Final = ".building-"


class Environments:
    """Prepared environments by blueprint id; `cache` is the service's cache folder."""

    def __init__(self, *, catalog: Catalog, provider: Provider, cache: Path) -> None:
        self._catalog = catalog
        self._provider = provider
        self._folder = cache / "environments"
        self._flights = Flights()
        self._seats: anyio.Semaphore | None = None
        self._whole: set[str] = set()

    async def prepare(self, blueprint_id: str) -> Prepared:
        """What a devbox of this blueprint starts from, built now if it never was.

        Raises NotFound for an unknown blueprint, BoxStartFailed naming file and line when it cannot be built, and Away.
        """
        name = hashlib.sha256(f"{blueprint_id} {self._provider.name}".encode()).hexdigest()[:20]
        prepared = await run_sync(self._load, name)
        if prepared is not None:
            return prepared
        return await self._flights.take(name, lambda: self._load_or_build(name, blueprint_id))

    async def _load_or_build(self, name: str, blueprint_id: str) -> Prepared:
        prepared = await run_sync(self._load, name)
        if prepared is not None:
            return prepared
        blueprint = await self._catalog.blueprint(blueprint_id)
        if blueprint is None:
            raise NotFound(f"There is no blueprint {blueprint_id!r}: its scenario's folder is gone or was changed.")
        if blueprint.refusals:
            raise BoxStartFailed(f"This environment cannot be built here: {text(blueprint.refusals)}.")
        self._seats = self._seats or anyio.Semaphore(BUILDS)
        async with self._seats:
            try:
                return await self._build(name, blueprint)
            except BoxStartFailed:
                await self._catalog.blueprint(blueprint_id)  # it says so if its folder is away
                raise

    async def _build(self, name: str, blueprint: Blueprint) -> Prepared:
        started = anyio.current_time()
        workshop = self._folder / f"{_BUILDING}{os.getpid()}-{token_hex(6)}"
        try:
            await run_sync(self._open, workshop)
            blueprint = await with_path(blueprint, self._provider)
            tree = await Build(blueprint=blueprint, provider=self._provider, folder=workshop).carry_out()
            if await run_sync(digest, blueprint.files.nodes) != blueprint.content:
                raise BoxStartFailed("The files in environment/ were changed while they were copied.")
            await run_sync(self._keep, tree, name, blueprint)
        except OSError as error:
            raise BoxStartFailed(f"The environment could not be built in {self._folder}: {error}") from error
        finally:
            with anyio.move_on_after(REMOVE_TIME, shield=True):
                await run_sync(_remove_quietly, workshop)
        seconds = round(anyio.current_time() - started, 3)
        structlog.get_logger().info("environment.built", blueprint=blueprint.id, seconds=seconds)
        prepared = await run_sync(self._load, name)
        if prepared is None:
            raise BoxStartFailed(f"The environment vanished from {self._folder} as soon as it was built.")
        return prepared

    def _open(self, workshop: Path) -> None:
        """Make the build's folder; what builds of processes that are gone left behind is removed."""
        workshop.mkdir(parents=True)
        for other in self._folder.glob(f"{_BUILDING}*"):
            pid = other.name.removeprefix(_BUILDING).partition("-")[0]
            if pid.isdigit() and not Path("/proc", pid).exists():
                _remove_quietly(other)

    def _keep(self, tree: Path, name: str, blueprint: Blueprint) -> None:
        """Make the tree an entry of the cache, in the place of a torn one if there is one."""
        entry = tree.parent / "entry"
        entry.mkdir()
        tree.rename(entry / "root")
        (entry / _FACTS).write_bytes(orjson.dumps({**_facts(blueprint), "amount": amount(entry / "root")}))
        place = self._folder / name
        if place.exists():
            place.rename(tree.parent / "torn")
        entry.rename(place)

    def _load(self, name: str) -> Prepared | None:
        """The entry, if it is there and whole."""
        place = self._folder / name
        if not place.exists():
            return None
        try:
            prepared = _read(place, is_trusted=name in self._whole)
        except (OSError, ValueError, KeyError, TypeError) as error:
            structlog.get_logger().warning("environment.torn", folder=str(place), error=str(error))
            return None
        self._whole.add(name)
        return prepared


def _read(place: Path, *, is_trusted: bool) -> Prepared:
    """Read an entry. Raises OSError, and ValueError, KeyError or TypeError when it is torn."""
    facts = orjson.loads((place / _FACTS).read_bytes())
    root = place / "root"
    if not root.is_dir() or not (is_trusted or facts["amount"] == amount(root)):
        raise ValueError("it does not hold what it should")
    return Prepared(
        name=place.name,
        root=root,
        working_directory=facts["working_directory"],
        environment=facts["environment"],
        network=facts["network"],
        hosts=tuple(facts.get("hosts", ())),
        setup=tuple(facts["setup"]),
        healthcheck=Healthcheck(**facts["healthcheck"]) if facts.get("healthcheck") else None,
        resources=Resources(**facts["resources"]),
    )


def _facts(blueprint: Blueprint) -> dict[str, object]:
    return {
        "blueprint": blueprint.id,
        "working_directory": blueprint.working_directory,
        "environment": blueprint.environment,
        "network": blueprint.network,
        "hosts": blueprint.hosts,
        "setup": [blueprint.setup] if blueprint.setup is not None else [],
        "healthcheck": blueprint.healthcheck,
        "resources": blueprint.resources,
    }


def _remove_quietly(folder: Path) -> None:
    try:
        remove(folder)
    except OSError as error:
        structlog.get_logger().warning("environment.not_removed", folder=str(folder), error=str(error))
