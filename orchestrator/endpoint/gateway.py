"""The endpoint behind the published client: its definitions, the endpoint as a whole, and the parts for the rest."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import httpx
from httpx_aiohttp import AiohttpTransport
from orjson import dumps
from runloop_api_client import AsyncRunloop, DefaultAioHttpClient, omit

from orchestrator.core.errors import Missing, Refused
from orchestrator.core.records import Benchmark, Preparation, RoomEstimate, Scenario, ScenarioSummary
from orchestrator.endpoint import parsing
from orchestrator.endpoint.calls import PAGE_ITEMS
from orchestrator.endpoint.devboxes_api import DevboxesApi
from orchestrator.endpoint.http import Bounded, Doubt, Throttle
from orchestrator.endpoint.protocols import PREPARATIONS
from orchestrator.endpoint.runs_api import RunsApi

MAX_CONNECTIONS: Final = 4096
#: Definitions carry whole scripts: fewer to a page.
PAGE_DEFINITIONS: Final = 200
#: The characters of globs that go with a request; with more, everything is read.
MAX_GLOB_CHARACTERS: Final = 8192


class Gateway(RunsApi, DevboxesApi):
    """Implements `protocols.Endpoint`. Use `async with Gateway.open(url, token, rate=…) as endpoint`."""

    _throttle: Throttle

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, token: str, *, rate: float | None, on_push_back: Callable[[], None] = lambda: None
    ) -> AsyncIterator["Gateway"]:
        """Build the client inside the running loop, on the transport that holds thousands of waits.

        `rate` is in requests a second; `on_push_back` is called whenever the endpoint asks for less.
        """
        inner = AiohttpTransport(limits=httpx.Limits(max_connections=MAX_CONNECTIONS))
        transport = Throttle(Doubt(Bounded(inner)), rate, on_push_back)
        http = DefaultAioHttpClient(transport=transport, trust_env=False)
        async with AsyncRunloop(bearer_token=token, base_url=url, max_retries=0, http_client=http) as client:
            gateway = cls(client, url)
            gateway._throttle = transport
            yield gateway

    @property
    def url(self) -> str:
        return self._url

    @property
    def token(self) -> str:
        return self._client.bearer_token

    @property
    def answered_at(self) -> float:
        return self._answered_at

    async def ping(self) -> None:
        with suppress(Refused):
            await self._ask("looking for the endpoint", lambda: self._client.devboxes.list(limit=1), parsing.items)

    def move(self, url: str, token: str) -> None:
        """Ask there from now on; calls that are repeated are repeated there."""
        self._url = self._client.base_url = url
        self._client.bearer_token = token

    def limit_rate(self, rate: float) -> None:
        self._throttle.limit(rate)

    async def notices(self, *, is_online: bool) -> Sequence[str]:
        return parsing.notices(await self._own_facts(), is_online=is_online)

    async def prepare(self, environments: Sequence[str], *, is_begun: bool = False) -> Sequence[Preparation]:
        if PREPARATIONS not in await self.features():
            return []
        body = {"blueprint_ids": list(environments), "is_begun": is_begun}
        return await self._ask("preparing environments", partial(self._own, "prepare", body), parsing.preparations)

    async def room_for(self, environments: Sequence[str]) -> RoomEstimate:
        if PREPARATIONS not in await self.features():
            return RoomEstimate()
        body = {"blueprint_ids": list(environments)}
        return await self._ask("asking for the room of images", partial(self._own, "room", body), parsing.room)

    async def at_work(self, sweep: str, client: str) -> list[str]:
        try:
            return await self._ask(
                "saying who is at work", partial(self._say, "heartbeat", client, sweep), parsing.at_work
            )
        except Missing:
            return []

    async def leave(self, client: str) -> None:
        await self._ask("saying who leaves", partial(self._say, "goodbye", client), parsing.receipt)

    async def _say(self, verb: str, client: str, sweep: str = "") -> dict[str, Any]:
        return await self._own(verb, {"client": client, "sweep": sweep})

    async def _own(self, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._client.post(f"/v1/sweep/{verb}", body=body, cast_to=dict[str, Any])

    async def secret_names(self) -> frozenset[str]:
        try:
            return await self._ask(
                "listing the secrets", lambda: self._client.secrets.list(limit=PAGE_ITEMS), parsing.secret_names
            )
        except Refused:  # it keeps none, or not for us
            return frozenset()

    async def benchmarks(self) -> list[Benchmark]:
        listers = (self._client.benchmarks.list, self._client.benchmarks.list_public)
        found = [await self._all("listing the benchmarks", lister, parsing.benchmark) for lister in listers]
        return list({benchmark.id: benchmark for page in found for benchmark in page}.values())

    async def summaries(
        self,
        benchmark: Benchmark,
        at_most: int | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> list[ScenarioSummary]:
        # A service of ours reads only what the globs choose; a foreign one does not know them.
        globs = {name: dumps(given).decode() for name, given in (("include", include), ("exclude", exclude)) if given}
        if sum(map(len, globs.values())) > MAX_GLOB_CHARACTERS:
            globs = {}

        async def read(cursor: str | None) -> tuple[list[ScenarioSummary], bool]:
            """Read one page; true if there are more."""
            return await self._ask(
                f"reading the definitions of benchmark {benchmark.name}",
                lambda: self._client.benchmarks.definitions(
                    benchmark.id, limit=PAGE_DEFINITIONS, starting_after=cursor or omit, extra_query=globs
                ),
                lambda page: ([parsing.summary(view) for view in page.scenarios], bool(page.has_more)),
            )

        page, has_more = await read(None)
        found = {summary.id: summary for summary in page}
        while page and has_more and (at_most is None or len(found) < at_most):
            page, has_more = await read(page[-1].id)
            found |= {summary.id: summary for summary in page}
        listed = [found.pop(identity) for identity in benchmark.scenario_ids if identity in found]
        return [*listed, *found.values()][:at_most]

    async def scenario(self, scenario_id: str) -> Scenario:
        return await self._ask(
            f"reading scenario {scenario_id}", lambda: self._client.scenarios.retrieve(scenario_id), parsing.scenario
        )
