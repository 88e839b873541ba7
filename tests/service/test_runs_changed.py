"""A scenario that changes, or whose folder goes away, between the start of a run and its score."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from orchestrator.core.protocol import Isolation
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.server import Service
from tests.waiting import poll

pytestmark = pytest.mark.anyio

TOKEN = "a token of the tests"
CUSTOM = '[[scorers]]\nname = "it"\ntype = "custom_scorer"\ncustom_scorer_type = "half"\n'
TEST = "echo 0.5 >/logs/verifier/reward.txt\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scenario `first` of a benchmark `bench`."""
    place = tmp_path / "bench" / "first"
    files = {
        "task.toml": "[environment]\nallow_internet = true\n",
        "instruction.md": "Mend it.\n",
        "environment/main.py": "print(1)\n",
        "solution/solve.sh": "true\n",
        "tests/test.sh": TEST,
        "../benchmark.toml": '[custom_scorers]\nhalf = "half.sh"\n',
        "../half.sh": "echo score=0.5\n",
    }
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


class Desk:
    """A client of a service that serves the benchmark."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def post(self, path: str, body: Any = None) -> Any:
        answer = await self.http.post(path, content=orjson.dumps(body or {}))
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def first(self) -> str:
        (scenario,) = (await self.http.get("/v1/scenarios")).json()["scenarios"]
        return str(scenario["id"])

    async def start(self, scenario: str | None = None) -> Any:
        return await self.post("/v1/scenarios/start_run", {"scenario_id": scenario or await self.first()})

    async def wait(self, run: Any, *states: str) -> Any:
        ask = partial(self.http.get, f"/v1/scenarios/runs/{run['id']}")
        return (await poll(ask, lambda answer: answer.json()["state"] in states, f"it is not {states}")).json()

    async def booted(self, run: Any) -> str:
        body = {"statuses": ["running", "failure", "shutdown"], "timeout_seconds": 30}
        return str((await self.post(f"/v1/devboxes/{run['devbox_id']}/wait_for_status", body))["status"])

    async def score(self, run: Any) -> Any:
        await self.post(f"/v1/scenarios/runs/{run['id']}/score")
        return await self.wait(run, "scored", "failed")


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[Desk]:
    state = folder.parents[1] / "state"
    state.mkdir(exist_ok=True)
    async with Service.open(state=state, benchmarks=[folder.parent], isolation=Isolation.NONE, token=TOKEN) as service:
        transport = httpx.ASGITransport(app=service.app)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as http:
            yield Desk(http)


def before_boot(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have something happen between the start of a run and the boot of its devbox."""
    boot_soon = Fleet.boot_soon

    def acting(fleet: Fleet, devbox_id: str, prepare: Any = None) -> None:
        act()
        boot_soon(fleet, devbox_id, prepare)

    monkeypatch.setattr(Fleet, "boot_soon", acting)


async def test_a_run_is_not_scored_by_tests_that_are_others_than_at_its_start(folder: Path) -> None:
    """Put back, they score it: nothing but the content counts."""
    async with desk(folder) as client:
        run = await client.start()
        assert await client.booted(run) == "running"
        (folder / "tests/test.sh").write_text(TEST.replace("0.5", "0.7"))
        (folder / "instruction.md").write_text("Mend all.\n")
        failed = await client.score(run)
        assert failed["state"] == "failed"
        assert failed["failure_reason"] == ("Scenario first was changed since this run began (instruction.md, tests).")
        assert "scoring_contract_result" not in failed
        (folder / "tests/test.sh").write_text(TEST)
        (folder / "instruction.md").write_text("Mend it.\n")
        scored = await client.score(run)
        assert (scored["state"], scored["scoring_contract_result"]["score"]) == ("scored", 0.5), scored


async def test_a_custom_scorer_that_is_another_does_not_score_it_either(folder: Path) -> None:
    (folder / "task.toml").write_text(CUSTOM)
    async with desk(folder) as client:
        run = await client.start()
        assert await client.booted(run) == "running"
        (folder.parent / "half.sh").write_text("echo score=0.7\n")
        failed = await client.score(run)
        assert "first was changed since this run began (custom scorer half)" in failed["failure_reason"]


@pytest.mark.parametrize("name", ["environment/main.py", "tests/test.sh", "task.toml", "instruction.md"])
async def test_no_devbox_is_booted_for_a_scenario_that_was_changed(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_boot(monkeypatch, lambda: (folder / name).write_text("# another\n"))
    async with desk(folder) as client:
        run = await client.start()
        assert await client.booted(run) == "failure"
        failed = await client.wait(run, "failed")
        part = name.partition("/")[0]
        assert f"Scenario first was changed since this run began ({part})" in failed["failure_reason"]


async def test_a_created_scenario_that_is_updated_does_not_score_its_runs(folder: Path) -> None:
    async with desk(folder) as client:
        scorer = {"type": "bash_script_scorer", "bash_script": "echo score=1"}
        contract = {"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": scorer}]}
        body = {"name": "mine", "input_context": {"problem_statement": "Do it."}, "scoring_contract": contract}
        identity = (await client.post("/v1/scenarios", body))["id"]
        run = await client.start(identity)
        assert await client.booted(run) == "running"
        await client.post(f"/v1/scenarios/{identity}", {"metadata": {"a": "b"}, "name": "ours"})
        assert (await client.score(run))["state"] == "scored"
        run = await client.start(identity)
        assert await client.booted(run) == "running"
        await client.post(f"/v1/scenarios/{identity}", {"input_context": {"problem_statement": "Do more."}})
        failed = await client.score(run)
        assert failed["failure_reason"] == "Scenario ours was changed since this run began (input_context)."


async def test_while_a_folder_is_away_its_scenarios_are_answered_503_and_then_as_before(folder: Path) -> None:
    async with desk(folder) as client:
        scenario = await client.first()
        before = (await client.http.get(f"/v1/scenarios/{scenario}")).json()
        benchmark = (await client.http.get("/v1/benchmarks")).json()["benchmarks"][0]["id"]
        moved = folder.parent.rename(folder.parents[1] / "elsewhere")
        for path in (
            f"/v1/scenarios/{scenario}",
            f"/v1/benchmarks/{benchmark}",
            f"/v1/benchmarks/{benchmark}/definitions",
        ):
            answer = await client.http.get(path)
            assert answer.status_code == 503
            assert answer.json() == {
                "code": 503,
                "message": f"The folder {folder.parent} is not there, or holds no benchmark any more; put it back.",
            }
            assert answer.headers["retry-after"]
        refused = await client.http.post("/v1/scenarios/start_run", content=orjson.dumps({"scenario_id": scenario}))
        assert refused.status_code == 503
        moved.rename(folder.parent)
        assert (await client.http.get(f"/v1/scenarios/{scenario}")).json() == before


async def test_a_scoring_waits_for_a_folder_that_is_away(folder: Path) -> None:
    async with desk(folder) as client:
        run = await client.start()
        assert await client.booted(run) == "running"
        moved = folder.parent.rename(folder.parents[1] / "elsewhere")
        await client.post(f"/v1/scenarios/runs/{run['id']}/score")
        assert (await client.wait(run, "scoring", "failed"))["state"] == "scoring"
        moved.rename(folder.parent)
        scored = await client.wait(run, "scored", "failed")
        assert (scored["state"], scored["scoring_contract_result"]["score"]) == ("scored", 0.5)


async def test_a_boot_waits_for_a_folder_that_is_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder.parents[1] / "elsewhere"
    before_boot(monkeypatch, lambda: folder.parent.rename(elsewhere))
    async with desk(folder) as client:
        run = await client.start()
        assert (await client.http.get(f"/v1/devboxes/{run['devbox_id']}")).json()["status"] == "provisioning"
        elsewhere.rename(folder.parent)
        assert await client.booted(run) == "running"


async def test_internal_fields_of_a_scenario_are_never_answered(folder: Path) -> None:
    async with desk(folder) as client:
        scenario = await client.first()
        await client.start(scenario)
        benchmark = (await client.http.get("/v1/benchmarks")).json()["benchmarks"][0]["id"]
        paths = (f"/v1/scenarios/{scenario}", "/v1/scenarios", f"/v1/benchmarks/{benchmark}/definitions")
        for path in (*paths, "/v1/scenarios/runs"):
            answer = await client.http.get(path)
            assert answer.status_code == 200
            assert [key for key in _keys(answer.json()) if key.startswith("_")] == []


def _keys(value: Any) -> Iterator[str]:
    """Every key in a JSON value."""
    if isinstance(value, dict):
        yield from value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(each)
