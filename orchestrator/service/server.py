"""The benchmark service as a running thing: its parts wired together, a socket, an orderly end.

Only this file knows every part. When the service ends, no new request is let in, scorings get a few seconds, then the
devboxes are shut down while requests that wait for them are still answered, and the socket goes last.

Why uvicorn's own signal handling is off: it would close the socket first and leave the devboxes for afterwards.
"""

import os
import resource
import secrets
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self, cast

import anyio
import structlog
import uvicorn
from anyio.abc import TaskGroup, TaskStatus
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from orchestrator.common.locks import Kind
from orchestrator.core.errors import UsageError, leaf
from orchestrator.core.protocol import Isolation
from orchestrator.service.address import Address, Home, forget_address, hold_lock, is_loopback, needing, publish
from orchestrator.service.definitions.catalog import Catalog
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.devboxes.executions import Executions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.network import NetworkPolicies
from orchestrator.service.environments.environments import Environments
from orchestrator.service.environments.installs.installs import Installs
from orchestrator.service.environments.user_cache import cache_folder
from orchestrator.service.http import devboxes as devbox_routes
from orchestrator.service.http.activity import Activity
from orchestrator.service.http.app import application
from orchestrator.service.http.benchmarks import BenchmarkRoutes, BenchmarkRunRoutes
from orchestrator.service.http.devboxes import NetworkPolicyRoutes
from orchestrator.service.http.gate import BrowserGate, HostNames
from orchestrator.service.http.protocol import BoundedHeads, Strangers
from orchestrator.service.http.scenarios import ScenarioRoutes, ScenarioRunRoutes, ScorerRoutes
from orchestrator.service.http.sweep import Facts, SecretRoutes, SettlementRoutes, SweepRoutes
from orchestrator.service.runs.benchmark_runs import BenchmarkRuns
from orchestrator.service.runs.logs import Logs
from orchestrator.service.runs.scenario_runs import ScenarioRuns
from orchestrator.service.runs.scorings import GRACE_S, Scorings
from orchestrator.service.runs.settlements import Settlements
from orchestrator.service.sandbox.limits import unlimited
from orchestrator.service.sandbox.provider import Capability, Provider
from orchestrator.service.sandbox.providers import open_provider
from orchestrator.service.seams import Opened, Seams
from orchestrator.service.store import Store

BACKLOG: Final = 4096
KEEP_ALIVE: Final = 75
#: Seconds that requests in flight get once the devboxes are gone.
_LAST_REPLIES: Final = 3
#: Seconds between two looks whether its state folder is there.
_LOOK_EVERY: Final = 0.5
_MAX_OPEN_FILES: Final = 65_536
#: Connections that have not shown the token: as many as wait in the backlog, and never more than half of our files.
_MAX_STRANGERS: Final = BACKLOG
#: Characters of a token, which guessing must not find.
MIN_TOKEN: Final = 16
SOUND: Final = Seams()


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
        seams: Seams = SOUND,
        secret_names: Sequence[str] = (),
        lock: Kind = "file",
    ) -> AsyncIterator[Self]:
        """Open the state in a folder that exists, and what is needed for it; on leaving, every devbox is shut down.

        `secret_names` are the variables of this process that clients may have, by name.
        Raises UsageError, SandboxUnavailable among them, and Unwritable.
        """
        instance, activity, stopping = secrets.token_hex(16), Activity(), anyio.Event()
        given = {name: os.environ[name] for name in secret_names}
        with needing(state):
            (state / "cache").mkdir(mode=0o700, exist_ok=True)
            home = Home(state)
        async with (
            Store.open(state / "service.sqlite", lock) as store,
            open_provider(isolation, state / "devboxes", hidden=(state, *benchmarks)) as provider,
        ):
            parts = _Parts.build(store, provider, state, benchmarks, seams, given)
            facts = Facts(
                instance=instance,
                isolation=provider.name,
                capabilities=tuple(sorted(provider.capabilities)),
                features=tuple(
                    name
                    for name, is_there in (
                        ("installs", parts.installs.is_possible),
                        ("settlements", Capability.SUCCESSION in provider.capabilities),
                    )
                    if is_there
                ),
                notices=tuple(unlimited(provider.enforced)),
            )
            for notice in facts.notices:
                structlog.get_logger().warning("devboxes.unlimited", notice=notice)
            own = SweepRoutes(facts=facts, token=token, activity=activity, store=store, stop=stopping.set)
            routes = [
                *((*own.routes(), *parts.own_routes()) if seams.dialect.has_own_routes else ()),
                *SecretRoutes(given).routes(),
                *parts.routes(),
            ]
            opened = Opened(routes=tuple(routes), capabilities=provider.capabilities, stopping=stopping)
            layers = [layer(opened) for layer in seams.layers]
            app = application(routes=routes, token=token, activity=activity, layers=layers)
            async with parts.scorings, parts.fleet:
                await parts.scenario_runs.recover()
                try:
                    yield cls(app=app, instance=instance, token=token, activity=activity, stopping=stopping, home=home)
                finally:
                    home.close()
                    activity.is_ending = True
                    await parts.scorings.wait_idle(GRACE_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The parts of a service, made for each other and not opened yet."""

    definitions: Definitions
    installs: Installs
    fleet: Fleet
    executions: Executions
    settlements: Settlements
    scorings: Scorings
    scenario_runs: ScenarioRuns
    benchmark_runs: BenchmarkRuns
    logs: Logs
    policies: NetworkPolicies

    @classmethod
    def build(
        cls,
        store: Store,
        provider: Provider,
        state: Path,
        benchmarks: Sequence[Path],
        seams: Seams,
        given: Mapping[str, str],
    ) -> Self:
        cache = state / "cache"
        scoring = seams.scoring(cache=cache)
        catalog = Catalog(benchmarks)
        environments = Environments(find_blueprint=catalog.blueprint, provider=provider, cache=cache)
        definitions = Definitions(store=store, catalog=catalog, scoring=scoring)
        installs = Installs(cache=cache_folder(), provider=provider)
        fleet = Fleet(
            store=store,
            provider=seams.provider(provider),
            state=state,
            blueprints=environments.prepare,
            installs=installs,
        )
        executions = seams.executions(store, fleet, state)
        settlements = Settlements(store=store, definitions=definitions, fleet=fleet)
        scorings = Scorings(
            store=store,
            definitions=definitions,
            fleet=fleet,
            scoring=scoring,
            settlements=settlements,
            dialect=seams.dialect,
            folder=state / "scorings",
        )
        scenario_runs = ScenarioRuns(
            store=store,
            definitions=definitions,
            fleet=fleet,
            environments=environments,
            scoring=scoring,
            scorings=scorings,
            dialect=seams.dialect,
            secrets=given,
            forget=executions.forget,
        )
        return cls(
            definitions=definitions,
            installs=installs,
            fleet=fleet,
            executions=executions,
            settlements=settlements,
            scorings=scorings,
            scenario_runs=scenario_runs,
            benchmark_runs=BenchmarkRuns(
                store=store, definitions=definitions, scenario_runs=scenario_runs, secrets=given
            ),
            logs=Logs(store=store, output=fleet.output),
            policies=NetworkPolicies(store, provider.capabilities),
        )

    def own_routes(self) -> list[Route]:
        """Those beyond the published protocol."""
        return SettlementRoutes(self.settlements, self.executions).routes()

    def routes(self) -> list[Route]:
        """In this order, because `{id}` of a later one would swallow words of an earlier one."""
        return [
            *BenchmarkRunRoutes(self.benchmark_runs, self.scenario_runs).routes(),
            *BenchmarkRoutes(self.definitions, self.benchmark_runs).routes(),
            *ScenarioRunRoutes(self.scenario_runs, self.logs).routes(),
            *ScorerRoutes(self.definitions).routes(),
            *ScenarioRoutes(self.definitions, self.scenario_runs).routes(),
            *devbox_routes.routes(self.fleet, self.executions),
            *NetworkPolicyRoutes(self.policies).routes(),
        ]


async def serve(
    host: str,
    port: int,
    token: str | None,
    state: Path,
    benchmarks: Sequence[Path],
    isolation: Isolation,
    linger: float | None,
    *,
    seams: Seams = SOUND,
    secret_names: Sequence[str] = (),
    allowed_hosts: Sequence[str] = (),
    lock: Kind = "file",
    task_status: TaskStatus[Address] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGTERM or SIGINT, until a client stops it, or until nobody has used it for `linger` seconds.

    Port 0 is any free one; where it listens is told to `task_status` and in `state/address.json`. A second signal
    ends it at once. `allowed_hosts` are names that clients may know it by beside those that `Names` has. Raises
    UsageError for a bad address or token, a state folder in use, a secret that is not in the environment, and what
    `Service.open` raises.
    """
    if token is None and not is_loopback(host):
        raise UsageError(f"Listening on {host} makes the service reachable for others: give it a --token of your own.")
    _check_token(token)
    if missing := [name for name in secret_names if name not in os.environ]:
        raise UsageError(f"--secret {missing[0]}: there is no such variable in the environment of the service.")
    token = token or secrets.token_urlsafe(32)
    raise_open_files()
    with hold_lock(state, lock), _listen(host, port) as listener, _ungrouped():
        forget_address(state)
        async with anyio.create_task_group() as watchers:
            try:
                async with (
                    _http(listener) as http,
                    Service.open(
                        state=state,
                        benchmarks=benchmarks,
                        isolation=isolation,
                        token=token,
                        seams=seams,
                        secret_names=secret_names,
                        lock=lock,
                    ) as service,
                ):
                    names = HostNames(host=host, others=frozenset(map(str.lower, allowed_hosts)))
                    http.answer(BrowserGate(service.app, names), seams.connection)
                    address = Address(url=_url(host, listener), token=token, instance=service.instance, pid=os.getpid())
                    watchers.start_soon(_heed_signals, service.stopping, watchers.cancel_scope)
                    if linger is not None:
                        watchers.start_soon(_stop_unused, service, linger)
                    watchers.start_soon(_stop_homeless, service, service.home)
                    with publish(state, address):
                        structlog.get_logger().info("service.listening", url=address.url, isolation=isolation)
                        task_status.started(address)
                        await service.stopping.wait()
                        structlog.get_logger().info("service.stopping")
            finally:
                watchers.cancel_scope.cancel()


def _check_token(token: str | None) -> None:
    """Raises UsageError for one that could be guessed, or that no header can carry; None will be a random one."""
    if token is None:
        return
    if len(token) < MIN_TOKEN:
        raise UsageError(
            f"--token, or SWEEP_TOKEN, has {len(token)} characters, which can be guessed: take at least {MIN_TOKEN}, "
            "such as those of `openssl rand -hex 16`, or none, for a random one."
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("--token, or SWEEP_TOKEN, has characters that a header cannot carry: take letters and digits.")


async def _heed_signals(stopping: anyio.Event, scope: anyio.CancelScope) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if stopping.is_set():
                scope.cancel()
            stopping.set()


async def _stop_unused(service: Service, linger: float) -> None:
    await service.activity.wait_unused(linger)
    service.activity.is_ending = True
    structlog.get_logger().info("service.unused", seconds=linger)
    service.stopping.set()


async def _stop_homeless(service: Service, home: Home) -> None:
    """Without its folder it has nothing to give any more, and nobody finds it: what it runs would be nobody's."""
    while await anyio.to_thread.run_sync(home.is_there):  # noqa: ASYNC110 - a folder announces nothing
        await anyio.sleep(_LOOK_EVERY)
    structlog.get_logger().error("service.homeless")
    service.activity.is_ending = True
    service.stopping.set()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are heeded by `serve`."""
        yield


class _Http:
    """The socket's side, which outlives the service that it answers for."""

    def __init__(self, tasks: TaskGroup, listener: socket.socket) -> None:
        self._tasks = tasks
        self._listener = listener
        self._server: _Server | None = None

    def answer(self, app: ASGIApp, connections: type[BoundedHeads]) -> None:
        """Start to answer requests, those too that wait in the backlog."""
        strangers = Strangers(min(_MAX_STRANGERS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        self._server = _Server(
            uvicorn.Config(
                app,
                http=cast("type[BoundedHeads]", partial(connections, strangers=strangers)),
                ws="none",
                lifespan="off",
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=_LAST_REPLIES,
                access_log=False,
                log_config=None,
                server_header=False,
            )
        )
        self._tasks.start_soon(self._serve, self._server)

    async def _serve(self, server: _Server) -> None:
        with anyio.CancelScope(shield=True):  # it ends by `end`, bounded, so that its sockets are closed
            await server.serve(sockets=[self._listener])

    def end(self) -> None:
        if self._server is not None:
            self._server.should_exit = True


@asynccontextmanager
async def _http(listener: socket.socket) -> AsyncIterator[_Http]:
    async with anyio.create_task_group() as tasks:
        http = _Http(tasks, listener)
        try:
            yield http
        finally:
            http.end()


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, because asyncio switches Nagle's delay off only where it is: 45 ms of every POST.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise UsageError(f"The service cannot listen on {host}, port {port}: {error}. Choose others.") from None
        yield listener


@contextmanager
def _ungrouped() -> Iterator[None]:
    """Let an exception that task groups have wrapped pass as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise leaf(group) from None


def _url(host: str, listener: socket.socket) -> str:
    """Where a client on this machine finds the listener."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    port = listener.getsockname()[1]
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def raise_open_files() -> None:
    """Raise the soft limit on open files as far as the hard one allows: each client and each command needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
