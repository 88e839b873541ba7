"""The devbox half of the service on a loopback port, and the published client that speaks to it."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from runloop_api_client import AsyncRunloop, DefaultAioHttpClient
from runloop_api_client.types import DevboxView

from orchestrator.service.devboxes.executions import Executions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.states import OnEnd
from orchestrator.service.errors import NotFound
from orchestrator.service.http.app import Activity, application
from orchestrator.service.http.devboxes import routes
from orchestrator.service.records import DevboxRecord
from orchestrator.service.sandbox.base_provider import BaseProvider
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.prepared import Healthcheck, Preparation, Prepared
from orchestrator.service.sandbox.process_provider import ProcessProvider
from orchestrator.service.sandbox.provider import Provider
from orchestrator.service.store import Store
from tests.boxes import lent
from tests.sandbox.conftest import image  # noqa: F401
from tests.serving import serving

ProviderType = Callable[[Path], BaseProvider[Any]]
PROVIDERS: dict[str, ProviderType] = {"process": ProcessProvider, "local": BwrapProvider}


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running service, and everything a test may want to hold of it."""

    client: AsyncRunloop
    fleet: Fleet
    executions: Executions
    store: Store
    activity: Activity
    ended: list[str]
    on_end: list[OnEnd]

    async def devbox(self, **asked: Any) -> DevboxView:
        """A devbox that has become `running`, or has ended."""
        created = await self.client.devboxes.create(**asked)
        return await self.reached(created.id, "running", "failure", "shutdown")

    async def reached(self, devbox_id: str, *statuses: str) -> DevboxView:
        """Wait for one of the statuses."""
        body = {"statuses": statuses, "timeout_seconds": 30.0}
        return await self.client.post(f"/v1/devboxes/{devbox_id}/wait_for_status", body=body, cast_to=DevboxView)


_QUICK: Any = {"interval": 0.01, "start_interval": 0.01}


@pytest.fixture(scope="module")
async def provider(sandboxes: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BwrapProvider]:
    """One provider for tests that need its boxes only."""
    provider = BwrapProvider(tmp_path_factory.mktemp("boxes"))
    yield provider
    await provider.close()


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture(scope="module", params=sorted(PROVIDERS))
def provider_type(request: pytest.FixtureRequest, obstacle: str) -> ProviderType:
    """Every provider that this machine permits."""
    if request.param == "local" and obstacle:
        pytest.skip(obstacle)
    return PROVIDERS[request.param]


@pytest.fixture
def serve(provider_type: ProviderType) -> Serve:
    """Serve a state folder for as long as the context lasts, with boxes of its own unless it is given a provider."""

    @asynccontextmanager
    async def serve(state: Path, given: Provider | None = None) -> AsyncIterator[Served]:
        provider = given or provider_type(state / "devboxes")
        async with Store.open(state / "service.sqlite") as store:
            ended: list[str] = []
            hooks: list[OnEnd] = [lambda _db, devbox: ended.append(devbox.id)]

            def on_end(db: sqlite3.Connection, devbox: DevboxRecord) -> None:
                for hook in hooks:
                    hook(db, devbox)

            fleet = Fleet(store=store, provider=provider, state=state, blueprints=_blueprints, on_end=on_end)
            executions = Executions(store, fleet, state)
            activity = Activity()
            app = application(routes=routes(fleet, executions), token="t", activity=activity)
            try:
                async with serving(app) as url, _client(url) as client, fleet:
                    yield Served(
                        client=client,
                        fleet=fleet,
                        executions=executions,
                        store=store,
                        activity=activity,
                        ended=ended,
                        on_end=hooks,
                    )
            finally:
                if given is None:
                    await provider.close()

    return serve


@pytest.fixture(scope="module")
async def each_provider(
    provider_type: ProviderType, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[BaseProvider[Any]]:
    provider = provider_type(tmp_path_factory.mktemp("devboxes"))
    yield provider
    await provider.close()


@pytest.fixture
async def served(serve: Serve, each_provider: BaseProvider[Any], tmp_path: Path) -> AsyncIterator[Served]:
    async with lent(each_provider), serve(tmp_path, each_provider) as served:
        yield served


#: Environments with a health check, by the id of their blueprint. The second would fail without its early runs.
CHECKS = {
    "bpt_healthy": Healthcheck(command='[ "$BASH_VERSION" ] && pwd > checked && cat marker >> checked'),
    "bpt_late": Healthcheck(command="echo >> tries; (($(wc -l < tries) > 3))", **_QUICK, start_period=20, retries=1),
    "bpt_sick": Healthcheck(command="echo >> tries; wc -l < tries; echo no luck >&2; false", **_QUICK),
    "bpt_slow": Healthcheck(command="sleep 60", timeout=0.2, retries=1),
}


#: What holds back the environment `bpt_gated`, and what was held for it.
GATE: dict[str, anyio.Event] = {}


async def _blueprints(blueprint_id: str, preparation: Preparation) -> Prepared:
    if blueprint_id == "bpt_gated":
        preparation.held.callback(GATE["over"].set)
        preparation.doing = lambda: "pulling an image"
        await GATE["ready"].wait()
        return Prepared(working_directory="/app")
    if blueprint_id in CHECKS:
        return Prepared(working_directory="/app", setup=("echo set up > marker",), healthcheck=CHECKS[blueprint_id])
    if blueprint_id == "bpt_python":
        return Prepared(working_directory="/app", setup=("#!/usr/bin/env python3\nopen('by', 'w').write(__file__)",))
    if blueprint_id != "bpt_known":
        raise NotFound(f"There is no blueprint with id {blueprint_id!r}.")
    return Prepared(working_directory="/app", environment={"FROM": "blueprint"}, setup=("echo set up > marker",))


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[AsyncRunloop]:
    http = DefaultAioHttpClient(limits=httpx.Limits(max_connections=1000))
    async with AsyncRunloop(bearer_token="t", base_url=url, max_retries=0, http_client=http) as client:
        yield client
