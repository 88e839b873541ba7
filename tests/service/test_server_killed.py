"""A service that was killed, and the next one on its state: what died with it is told, and cleared away."""

import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from orchestrator.common.address import Address
from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.limits import CONTROLLERS, PREFIX, candidate_parents
from orchestrator.service.server import serve
from tests.processes import carrying
from tests.waiting import poll, until

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
SERVE = """
import sys, anyio
from pathlib import Path
from orchestrator.core.protocol import Isolation
from orchestrator.service.server import serve
anyio.run(serve, "127.0.0.1", 0, None, Path(sys.argv[1]), [], Isolation(sys.argv[2]), None)
"""
IS_BOOTING = {"launch_parameters": {"launch_commands": ["echo booting; sleep 600"]}}


@dataclass(frozen=True, slots=True)
class Desk:
    """A client of the service, in the words of these tests."""

    http: httpx.AsyncClient

    async def post(self, path: str, body: Any = None, *, status: int = 200, key: str | None = None) -> Any:
        answer = await self.http.post(f"/v1/{path}", json=body or {}, headers={"x-request-id": key} if key else {})
        assert answer.status_code == status, answer.text
        return answer.json()

    async def get(self, path: str) -> Any:
        answer = await self.http.get(f"/v1/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def scenario(self, script: str, **more: Any) -> str:
        scorer = {"type": "bash_script_scorer", "bash_script": script}
        contract = {"scoring_function_parameters": [{"name": "it", "weight": 1, "scorer": scorer}]}
        body = {"name": "s", "input_context": {"problem_statement": "p"}, "scoring_contract": contract, **more}
        return str((await self.post("scenarios", body))["id"])

    async def start(self, scenario: str, benchmark_run: str, key: str) -> Any:
        body = {"scenario_id": scenario, "benchmark_run_id": benchmark_run}
        return await self.post("scenarios/start_run", body, key=key)

    async def wait_running(self, run: Any) -> None:
        body = {"statuses": ["running", "failure", "shutdown"], "timeout_seconds": PATIENCE}
        assert (await self.post(f"devboxes/{run['devbox_id']}/wait_for_status", body))["status"] == "running"

    async def wait_state(self, run: Any, state: str) -> Any:
        ask = partial(self.get, f"scenarios/runs/{run['id']}")
        return await poll(ask, lambda view: view["state"] == state, f"it does not become {state}")


def client_of(address: Address) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {address.token}"}
    return httpx.AsyncClient(base_url=address.url, headers=headers, timeout=40, trust_env=False)


@asynccontextmanager
async def to_be_killed(state: Path, isolation: Isolation, script: str = SERVE) -> AsyncIterator[Desk]:
    """A service in a process of its own, which is killed at the end of the context."""
    argv = [sys.executable, "-c", script, str(state), isolation]
    async with await anyio.open_process(argv, stdin=None, stdout=None, stderr=None) as started:
        try:
            address = await until(lambda: Address.read(state), "it does not serve")
            async with client_of(address) as http:
                yield Desk(http)
        finally:
            started.kill()
            await started.wait()


@asynccontextmanager
async def successor(state: Path, isolation: Isolation) -> AsyncIterator[Desk]:
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(partial(serve, "127.0.0.1", 0, None, state, [], isolation, None))
        async with client_of(address) as http:
            yield Desk(http)
        tasks.cancel_scope.cancel()


def groups_of(pid: int) -> list[Path]:
    """The control groups that a service has made for its boxes."""
    return [
        group
        for controller in CONTROLLERS.values()
        for parent in candidate_parents(controller)
        for group in parent.glob(f"{PREFIX}{pid}-*")
    ]


@pytest.fixture(params=list(Isolation))
def isolation(request: pytest.FixtureRequest, obstacle: str) -> Isolation:
    isolation: Isolation = request.param
    if isolation is Isolation.LOCAL and obstacle:
        pytest.skip(obstacle)
    return isolation


@pytest.mark.slow
async def test_devboxes_and_runs_of_a_killed_service_are_failed_and_cleared_away(
    tmp_path: Path, isolation: Isolation
) -> None:
    """Results stay; what was booting, solving or scoring has failed, and can be tried again at once."""
    mark = f"600.{uuid.uuid4().int}"  # a time to sleep that nobody else does
    async with to_be_killed(tmp_path, isolation) as client:
        pid = (Address.read(tmp_path) or pytest.fail("no address")).pid
        scorer = f"test -f wait && sleep {mark}; echo score=0.5"
        booting = await client.scenario(scorer, environment_parameters=IS_BOOTING)
        solving, scoring, scored, done = [await client.scenario(scorer) for _ in range(4)]
        scenarios = [booting, solving, scoring, scored, done]
        benchmark = await client.post("benchmarks", {"name": "b", "scenario_ids": scenarios})
        whole = (await client.post("benchmarks/start_run", {"benchmark_id": benchmark["id"]}))["id"]
        runs = {scenario: await client.start(scenario, whole, f"key-{scenario}") for scenario in scenarios}
        for scenario in scenarios[1:]:
            await client.wait_running(runs[scenario])
        devbox = runs[solving]["devbox_id"]
        command = {"command": f"echo so far; setsid sleep {mark} & sleep {mark}"}
        execution = (await client.post(f"devboxes/{devbox}/execute_async", command))["execution_id"]
        waiting = {"file_path": "wait", "contents": ""}
        await client.post(f"devboxes/{runs[scoring]['devbox_id']}/write_file_contents", waiting)
        for scenario in (scoring, scored, done):
            await client.post(f"scenarios/runs/{runs[scenario]['id']}/score")
        results = {each: await client.wait_state(runs[each], "scored") for each in (scored, done)}
        await client.post(f"scenarios/runs/{runs[done]['id']}/complete")
        await until(lambda: len(carrying(f"sleep\0{mark}")) >= 3, "nothing sleeps")
        has_groups = bool(groups_of(pid))

    await until(lambda: not carrying(mark), lambda: f"left: {carrying(mark)}")
    assert bool(groups_of(pid)) == has_groups, "a killed service cannot clean up"
    async with successor(tmp_path, isolation) as client:
        assert groups_of(pid) == []
        assert list((tmp_path / "devboxes" / "boxes").iterdir()) == []
        for scenario in (booting, solving, scoring):
            view = await client.get(f"scenarios/runs/{runs[scenario]['id']}")
            assert view["state"] == "failed"
            assert "The service ended under it" in view["failure_reason"]
            refused = await client.post(f"scenarios/runs/{view['id']}/score", status=400)
            assert "is failure" in refused["message"]
        for scenario in (booting, solving, scoring, scored):
            devbox = await client.get(f"devboxes/{runs[scenario]['devbox_id']}")
            assert (devbox["status"], devbox["failure_reason"]) == ("failure", "health_check_failed")
        for scenario in (scored, done):
            completed = await client.post(f"scenarios/runs/{runs[scenario]['id']}/complete")
            assert completed["state"] == "completed"
            assert completed["scoring_contract_result"] == results[scenario]["scoring_contract_result"]

        path = f"devboxes/{runs[solving]['devbox_id']}/executions/{execution}"
        ended = await client.get(path)
        assert (ended["status"], ended["exit_status"], ended["stdout"]) == ("completed", 137, "so far\n")
        assert (await client.post(f"{path}/wait_for_status", {"statuses": ["completed"]}))["exit_status"] == 137

        view = await client.get(f"benchmark_runs/{whole}")
        assert (view["state"], view["pending_scenarios"]) == ("running", [booting, solving, scoring])
        assert await client.start(solving, whole, f"key-{solving}") == runs[solving], "a key keeps its answer"
        again = await client.start(solving, whole, "another key")
        await client.wait_running(again)
        await client.post(f"scenarios/runs/{again['id']}/score")
        assert (await client.wait_state(again, "scored"))["scoring_contract_result"]["score"] == pytest.approx(0.5)
