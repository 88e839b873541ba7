"""A service that misbehaves, or speaks another dialect, on a loopback port, and the published client that meets it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from runloop_api_client import AsyncRunloop, DefaultAioHttpClient
from runloop_api_client.types import DevboxView, ScenarioRunView

from orchestrator.core.protocol import Isolation
from orchestrator.service.address import Address
from orchestrator.service.seams import Seams
from orchestrator.service.server import serve
from orchestrator.testing.chaos.plug_in import misbehaving
from orchestrator.testing.chaos.rules import read_rules
from orchestrator.testing.strict_compat import strict
from tests.waiting import poll

PATIENCE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A served service, the client without retries, and everything that was said on the wire."""

    address: Address
    client: AsyncRunloop
    replies: list[httpx.Response]

    async def scenario(self, *scripts: str, **more: Any) -> str:
        """A scenario with these scorers, `echo score=1.0` if none is given."""
        functions = [
            {"name": f"it-{number}", "weight": 1 / len(scripts or "1"), "scorer": bash(script)}
            for number, script in enumerate(scripts or ("echo score=1.0",))
        ]
        view = await self.client.scenarios.create(
            name="a scenario",
            input_context={"problem_statement": "Do it."},
            scoring_contract={"scoring_function_parameters": functions},  # type: ignore[typeddict-item]
            **more,
        )
        return view.id

    async def devbox(self) -> str:
        """The id of a devbox that runs."""
        created = await self.client.devboxes.create()
        assert (await self.settled(created.id)).status == "running"
        return created.id

    async def settled(self, devbox: str, *statuses: str) -> DevboxView:
        """A devbox that runs or has ended, or is in one of the statuses."""
        body = {"statuses": statuses or ("running", "failure", "shutdown"), "timeout_seconds": PATIENCE}
        path = f"/v1/devboxes/{devbox}/wait_for_status"
        return await self.client.post(path, body=body, cast_to=DevboxView, options={"timeout": PATIENCE + 5})

    async def run(self, scenario: str | None = None, **more: Any) -> ScenarioRunView:
        """A run whose devbox runs."""
        run = await self.client.scenarios.start_run(scenario_id=scenario or await self.scenario(), **more)
        assert (await self.settled(run.devbox_id)).status == "running"
        return run

    async def score(self, run: ScenarioRunView) -> ScenarioRunView:
        """Have a run scored, and wait for the end of that."""
        await self.client.scenarios.runs.score(run.id)
        return await self.scored(run)

    async def scored(self, run: ScenarioRunView) -> ScenarioRunView:
        """A run that is not being scored any more."""
        ask = partial(self.client.scenarios.runs.retrieve, run.id)
        return await poll(ask, lambda view: view.state != "scoring", "it is still being scored")


def bash(script: str) -> dict[str, str]:
    return {"type": "bash_script_scorer", "bash_script": script}


Rehearse = Callable[..., AbstractAsyncContextManager[Rehearsal]]


@pytest.fixture
def rehearse(tmp_path: Path) -> Rehearse:
    """Serve with the rules of a chaos file (None: without chaos), as a foreign endpoint or ours."""

    @asynccontextmanager
    async def rehearse(
        rules: str | None = None,
        *,
        is_foreign: bool = False,
        isolation: Isolation = Isolation.NONE,
        state: str = "state",
    ) -> AsyncIterator[Rehearsal]:
        seams = strict(Seams()) if is_foreign else Seams()
        if rules is not None:
            file = tmp_path / "chaos.toml"
            file.write_text(rules)
            seams = misbehaving(seams, read_rules(file))
        start = partial(serve, "127.0.0.1", 0, None, tmp_path / state, [], isolation, None, seams=seams)
        async with anyio.create_task_group() as tasks:
            address: Address = await tasks.start(start)
            async with rehearsal(address) as met:
                yield met
            tasks.cancel_scope.cancel()

    return rehearse


@asynccontextmanager
async def rehearsal(address: Address) -> AsyncIterator[Rehearsal]:
    replies: list[httpx.Response] = []

    async def note(reply: httpx.Response) -> None:
        replies.append(reply)

    http = DefaultAioHttpClient(event_hooks={"response": [note]}, trust_env=False)
    async with AsyncRunloop(
        bearer_token=address.token, base_url=address.url, max_retries=0, http_client=http
    ) as client:
        yield Rehearsal(address=address, client=client, replies=replies)
