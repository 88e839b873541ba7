"""The parts of a service and how they are put together, without a socket.

Its secret: only this file knows every part. A part is given what it needs when it is made, so the order below is the
order in which they need each other, and there is no other. When the service ends, no new request is let in, scorings
get a few seconds, then the devboxes are shut down.

Test equipment is plugged in at the places that `Seams` names and nowhere else: the service imports none of it, and the
command that starts it builds this record (`testing.chaos`, `testing.strict_compat`).
"""

import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import anyio
import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from orchestrator.common.cache_folder import cache_folder
from orchestrator.core.protocol import DiskLimit, Isolation, LockKind, Mirror
from orchestrator.service.definitions.catalog import Catalog
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.devboxes.blueprints import Blueprints
from orchestrator.service.devboxes.executions import Executions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.network import PROXIED, NetworkPolicies
from orchestrator.service.devboxes.snapshots import Snapshots
from orchestrator.service.environments.environments import Environments
from orchestrator.service.environments.installs import Installs
from orchestrator.service.environments.objects import Objects
from orchestrator.service.environments.preparations import Preparations
from orchestrator.service.http import benchmarks, blueprints, devboxes, front_page, scenarios, sweep
from orchestrator.service.http.app import Activity, application
from orchestrator.service.http.gate import BoundedHeads
from orchestrator.service.runs.benchmark_runs import BenchmarkRuns
from orchestrator.service.runs.scenario_runs import ScenarioRuns
from orchestrator.service.runs.scorings import GRACE_S, Scorings
from orchestrator.service.runs.settlements import Settlements
from orchestrator.service.runs.states import OURS, Dialect, end_runs_of
from orchestrator.service.sandbox.limits import unlimited
from orchestrator.service.sandbox.own_ids import shortcomings
from orchestrator.service.sandbox.provider import Capability, Provider
from orchestrator.service.sandbox.providers import open_provider
from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.state_folder import Home, needing
from orchestrator.service.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The service as a layer around it may know it; `stopping` is set when the service shall end."""

    routes: tuple[Route, ...]
    capabilities: frozenset[Capability]
    stopping: anyio.Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """The places where test equipment can be plugged in, each with what a sound service has there."""

    dialect: Dialect = OURS
    #: It has the routes below /v1/sweep, which are beyond the published protocol.
    has_own_routes: bool = True
    #: Wraps the provider that devboxes are booted by.
    provider: Callable[[Provider], Provider] = lambda provider: provider
    #: Called as these classes are.
    scoring: Callable[..., Scoring] = Scoring
    executions: Callable[[Store, Fleet, Path], Executions] = Executions
    #: See the requests of those who have the token, the first one first.
    layers: tuple[Callable[[Opened], Middleware], ...] = ()
    connection: type[BoundedHeads] = BoundedHeads


SOUND: Final = Seams()


class _Parts:
    """The parts of a service, not opened yet. `given` are the secrets that clients may have."""

    def __init__(
        self,
        store: Store,
        provider: Provider,
        state: Path,
        folders: Sequence[Path],
        seams: Seams,
        given: Mapping[str, str],
        mirrors: Sequence[Mirror],
        image_budget: int | None,
        *,
        rebuild: bool,
    ) -> None:
        cache = state / "cache"
        scoring = seams.scoring(cache=cache)
        catalog = Catalog(folders, rebuild=rebuild)
        self.objects = Objects(store, state / "objects")
        self.blueprints = Blueprints(
            store=store,
            folder=state / "blueprints",
            objects=self.objects,
            find_other=catalog.blueprint,
            build=lambda *given: self.environments.prepare(*given),  # noqa: PLW0108 - which needs to be made first
        )
        self.environments = Environments(
            find_blueprint=self.blueprints.find,
            provider=provider,
            cache=cache,
            shared=cache_folder(),
            mirrors=mirrors,
            budget=image_budget,
        )
        self.definitions = Definitions(store=store, catalog=catalog, scoring=scoring)
        self.policies = NetworkPolicies(store, provider.capabilities)
        self.installs = Installs(cache=cache_folder(), provider=provider)
        self.fleet = Fleet(
            store=store,
            provider=seams.provider(provider),
            state=state,
            blueprints=self.environments.prepare,
            snapshots=lambda *given: self.snapshots.prepare(*given),  # noqa: PLW0108 - made below
            on_end=end_runs_of,
            installs=self.installs,
        )
        self.snapshots = Snapshots(
            store=store, folder=state / "snapshots", fleet=self.fleet, environment=self.environments.prepare
        )
        self.executions = seams.executions(store, self.fleet, state)
        self.settlements = Settlements(store=store, definitions=self.definitions, fleet=self.fleet)
        self.scorings = Scorings(
            store=store,
            definitions=self.definitions,
            fleet=self.fleet,
            scoring=scoring,
            settlements=self.settlements,
            dialect=seams.dialect,
            folder=state / "scorings",
        )
        self.scenario_runs = ScenarioRuns(
            store=store,
            definitions=self.definitions,
            fleet=self.fleet,
            executions=self.executions,
            environments=self.environments,
            snapshots=self.snapshots,
            scoring=scoring,
            scorings=self.scorings,
            dialect=seams.dialect,
            secrets=given,
        )
        self.benchmark_runs = BenchmarkRuns(
            store=store, definitions=self.definitions, scenario_runs=self.scenario_runs, secrets=given
        )

    def routes(self) -> list[Route]:
        """Make the published routes, in this order, because `{id}` of a later one would swallow words of an earlier."""
        return [
            *benchmarks.BenchmarkRunRoutes(self.benchmark_runs, self.scenario_runs).routes(),
            *benchmarks.BenchmarkRoutes(self.definitions, self.benchmark_runs).routes(),
            *scenarios.ScenarioRunRoutes(self.scenario_runs).routes(),
            *scenarios.ScorerRoutes(self.definitions).routes(),
            *scenarios.ScenarioRoutes(self.definitions, self.scenario_runs).routes(),
            *devboxes.SnapshotRoutes(self.snapshots).routes(),
            *devboxes.routes(self.fleet, self.executions),
            *devboxes.NetworkPolicyRoutes(self.policies).routes(),
            *blueprints.BlueprintRoutes(self.blueprints).routes(),
            *blueprints.ObjectRoutes(self.objects).routes(),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """An open service without a socket. `stopping` is set when it shall end."""

    app: Starlette
    instance: str
    token: str
    activity: Activity
    stopping: anyio.Event
    home: Home

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        state: Path,
        benchmarks: Sequence[Path],
        isolation: Isolation,
        token: str,
        lends_network: bool = False,
        disk_limit: DiskLimit = DiskLimit.WATCHED,
        seams: Seams = SOUND,
        secret_names: Sequence[str] = (),
        lock: LockKind = "file",
        mirrors: Sequence[Mirror] = (),
        image_budget: int | None = None,
        rebuild: bool = False,
    ) -> AsyncIterator[Self]:
        """Open the state in a folder that exists, and what is needed for it; on leaving, every devbox is shut down.

        `secret_names` are the variables of this process that clients may have, by name. `mirrors` are asked for images
        before their registries, and `image_budget` are the bytes that these may take; with `rebuild`, those of
        scenarios are built where they can be. With `lends_network`, a policy that allows all gives a devbox the network
        of this machine, and not only the internet.
        Raises UsageError, SandboxUnavailable among them, and Unwritable.
        """
        instance, activity, stopping = secrets.token_hex(16), Activity(), anyio.Event()
        given = {name: os.environ[name] for name in secret_names}
        with needing(state):
            (state / "cache").mkdir(mode=0o700, exist_ok=True)
            home = Home(state)
        async with (
            Store.open(state / "service.sqlite", lock) as store,
            open_provider(
                isolation,
                state / "devboxes",
                hidden=(state, *benchmarks),
                lends_network=lends_network,
                disk_limit=disk_limit,
            ) as provider,
        ):
            parts = _Parts(store, provider, state, benchmarks, seams, given, mirrors, image_budget, rebuild=rebuild)
            features = {
                "installs": parts.installs.is_possible,
                "preparations": Capability.IMAGES in provider.capabilities,
                "settlements": Capability.SUCCESSION in provider.capabilities,
                "host_network": Capability.NETWORK_ON in provider.capabilities,
            }
            facts = sweep.Facts(
                instance=instance,
                isolation=isolation,
                capabilities=tuple(sorted(provider.capabilities)),
                features=tuple(name for name, is_there in features.items() if is_there),
                notices=(*unlimited(provider.enforced), *shortcomings()),
                internet_notices=(PROXIED.format(provider.no_public),) if provider.no_public else (),
            )
            for notice in facts.notices:
                structlog.get_logger().warning("devboxes.limited", notice=notice)
            for notice in facts.internet_notices:
                structlog.get_logger().info("devboxes.proxied", notice=notice)
            routes = [*sweep.SecretRoutes(given).routes(), *parts.routes()]
            if seams.has_own_routes:
                own = sweep.SweepRoutes(facts=facts, token=token, activity=activity, store=store, stop=stopping.set)
                ends = sweep.SettlementRoutes(parts.settlements, parts.executions)
                early = sweep.PreparationRoutes(
                    Preparations(parts.environments, parts.fleet.start_soon), parts.environments
                )
                front = front_page.FrontPage(store, token)
                routes = [*own.routes(), *ends.routes(), *early.routes(), *front.routes(), *routes]
            opened = Opened(routes=tuple(routes), capabilities=provider.capabilities, stopping=stopping)
            layers = [layer(opened) for layer in seams.layers]
            app = application(routes=routes, token=token, activity=activity, layers=layers)
            async with parts.environments, parts.scorings, parts.fleet, parts.blueprints:
                await parts.snapshots.open()
                try:
                    yield cls(app=app, instance=instance, token=token, activity=activity, stopping=stopping, home=home)
                finally:
                    home.close()
                    activity.is_ending = True
                    await parts.scorings.wait_idle(GRACE_S)
