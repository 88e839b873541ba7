"""Environments of scenarios, each built once: the id of its blueprint names it for as long as the cache lives."""

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio
import structlog

from orchestrator.service.diagnostics import text
from orchestrator.service.environments.build_cache import BuildCache, Built
from orchestrator.service.environments.builds import Blueprint, EnvironmentBuild, with_path
from orchestrator.service.errors import NotFound
from orchestrator.service.sandbox.prepared import Healthcheck, Prepared
from orchestrator.service.sandbox.provider import BoxStartFailed, Provider, Resources

FindBlueprint = Callable[[str], Awaitable[Blueprint | None]]


class Environments:
    """Prepared environments by the ids of their blueprints, which `find_blueprint` knows.

    `cache` is the service's cache folder.
    """

    def __init__(self, *, find_blueprint: FindBlueprint, provider: Provider, cache: Path) -> None:
        self._find_blueprint = find_blueprint
        self._provider = provider
        self._folder = cache / "environments"
        self._cache = BuildCache(self._folder, kind="environment", tree="root", read=_read)

    async def prepare(self, blueprint_id: str) -> Prepared:
        """Return what a devbox of this blueprint starts from, built now if it never was.

        Raises NotFound for an unknown blueprint, BoxStartFailed naming file and line when it cannot be built, and Away.
        """
        name = hashlib.sha256(f"{blueprint_id} {self._provider.name}".encode()).hexdigest()[:20]
        try:
            return await self._cache.get(name, partial(self._build, blueprint_id))
        except OSError as error:
            raise BoxStartFailed(f"The environment could not be built in {self._folder}: {error}") from error

    async def _build(self, blueprint_id: str, folder: Path) -> Built:
        started = anyio.current_time()
        blueprint = await self._find_blueprint(blueprint_id)
        if blueprint is None:
            raise NotFound(f"There is no blueprint {blueprint_id!r}: its scenario's folder is gone or was changed.")
        if blueprint.refusals:
            raise BoxStartFailed(f"This environment cannot be built here: {text(blueprint.refusals)}.")

        try:
            blueprint = await with_path(blueprint, self._provider)
            tree = await EnvironmentBuild(blueprint=blueprint, provider=self._provider, folder=folder).carry_out()
        except (BoxStartFailed, OSError):
            await self._find_blueprint(blueprint_id)  # raises Away if its folder is not there
            raise

        seconds = round(anyio.current_time() - started, 3)
        structlog.get_logger().info("environment.built", blueprint=blueprint.id, seconds=seconds)
        facts = {
            "blueprint": blueprint.id,
            "working_directory": blueprint.working_directory,
            "environment": blueprint.environment,
            "network": blueprint.network,
            "hosts": blueprint.hosts,
            "setup": [blueprint.setup] if blueprint.setup is not None else [],
            "healthcheck": blueprint.healthcheck,
            "resources": blueprint.resources,
        }
        return Built(tree=tree, facts=facts)


def _read(built: Built) -> Prepared:
    """Make an environment of its tree and description; those of older versions have no hosts and health checks."""
    facts = built.facts
    return Prepared(
        name=built.tree.parent.name,
        root=built.tree,
        working_directory=facts["working_directory"],
        environment=facts["environment"],
        network=facts["network"],
        hosts=tuple(facts.get("hosts", ())),
        setup=tuple(facts["setup"]),
        healthcheck=Healthcheck(**facts["healthcheck"]) if facts.get("healthcheck") else None,
        resources=Resources(**facts["resources"]),
    )
