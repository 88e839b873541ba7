"""Scenario runs and benchmark runs from start to end, on the whole service without a socket, with real devboxes."""

import hashlib
import io
import os
import sqlite3
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import pytest

from orchestrator.core.protocol import Isolation
from orchestrator.service.server import Service
from tests.waiting import poll, until

pytestmark = pytest.mark.anyio

TOKEN = "a token of the tests"


@dataclass(frozen=True, slots=True)
class Desk:
    """A client of the service, in the words of these tests."""

    http: httpx.AsyncClient

    async def post(self, path: str, body: Any = None, *, status: int = 200, key: str | None = None) -> Any:
        content = orjson.dumps(body) if body is not None else b""
        answer = await self.http.post(path, content=content, headers={"x-request-id": key} if key else {})
        assert answer.status_code == status, answer.text
        return answer.json()

    async def get(self, path: str, *, status: int = 200, **query: Any) -> Any:
        answer = await self.http.get(path, params=query)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def scenario(self, script: str = "echo score=1.0", **fields: Any) -> str:
        scorer = {"type": "bash_script_scorer", "bash_script": script}
        body = {
            "name": "a scenario",
            "input_context": {"problem_statement": "Do it."},
            "scoring_contract": {"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": scorer}]},
            **fields,
        }
        return str((await self.post("/v1/scenarios", body))["id"])

    async def benchmark_run(self, *scenarios: str, **fields: Any) -> str:
        benchmark = await self.post("/v1/benchmarks", {"name": "a benchmark", "scenario_ids": list(scenarios)})
        run = await self.post("/v1/benchmarks/start_run", {"benchmark_id": benchmark["id"], **fields})
        return str(run["id"])

    async def start(self, scenario: str, **fields: Any) -> Any:
        """A run whose devbox is running."""
        run = await self.post("/v1/scenarios/start_run", {"scenario_id": scenario, **fields})
        await self.wait_devbox(run["devbox_id"], "running")
        return run

    async def wait_devbox(self, devbox: str, status: str) -> Any:
        body = {"statuses": ["running", "failure", "shutdown"], "timeout_seconds": 30}
        if status != "running":
            body["statuses"] = ["failure", "shutdown"]
        view = await self.post(f"/v1/devboxes/{devbox}/wait_for_status", body)
        assert view["status"] == status, view
        return view

    async def wait_run(self, run: str, is_there: Callable[[str], bool]) -> Any:
        ask = partial(self.get, f"/v1/scenarios/runs/{run}")
        return await poll(ask, lambda view: is_there(view["state"]), "the run does not come so far")

    async def score(self, run: str) -> Any:
        """Ask for the score and wait for it."""
        assert (await self.post(f"/v1/scenarios/runs/{run}/score"))["state"] == "scoring"
        return await self.wait_run(run, lambda state: state != "scoring")


def holds(file: Path, words: str) -> bool:
    return words.encode() in file.read_bytes()


@asynccontextmanager
async def desk(state: Path) -> AsyncIterator[Desk]:
    async with Service.open(
        state=state, benchmarks=[], isolation=Isolation.NONE, token=TOKEN, secret_names=("PATH",)
    ) as service:
        transport = httpx.ASGITransport(app=service.app)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", headers=headers, timeout=60
        ) as http:
            yield Desk(http)


async def test_a_run_is_started_scored_and_completed(tmp_path: Path) -> None:
    """The documented flow: the devbox lives until the run is completed, and no longer."""
    async with desk(tmp_path) as client:
        scenario = await client.scenario("test -f done && echo score=0.5")
        run = await client.start(scenario, run_name="one", metadata={"sweep": "s1"})
        assert run["state"] == "running"
        assert run["name"] == "one"
        assert run["metadata"] == {"sweep": "s1"}
        devbox = await client.get(f"/v1/devboxes/{run['devbox_id']}")
        assert devbox["metadata"] == {"sweep": "s1"}
        assert (devbox["initiator_type"], devbox["initiator_id"]) == ("scenario", run["id"])
        path = f"/v1/devboxes/{run['devbox_id']}/write_file_contents"
        await client.post(path, {"file_path": "done", "contents": ""})
        scored = await client.score(run["id"])
        assert scored["state"] == "scored", scored
        assert scored["scoring_contract_result"]["score"] == pytest.approx(0.5)
        assert scored["duration_ms"] >= 0
        assert (await client.get(f"/v1/devboxes/{run['devbox_id']}"))["status"] == "running"
        completed = await client.post(f"/v1/scenarios/runs/{run['id']}/complete")
        assert completed["state"] == "completed"
        assert completed["scoring_contract_result"] == scored["scoring_contract_result"]
        await client.wait_devbox(run["devbox_id"], "shutdown")


async def test_starting_twice_with_one_key_is_starting_once(tmp_path: Path) -> None:
    """Two requests in flight with the same key, and one long after, get the answer of the first."""
    async with desk(tmp_path) as client:
        body = {"scenario_id": await client.scenario()}
        answers: list[Any] = []

        async def start() -> None:
            answers.append(await client.post("/v1/scenarios/start_run", body, key="k1"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            tasks.start_soon(start)
        await client.post(f"/v1/scenarios/runs/{answers[0]['id']}/cancel")
        await start()
        assert answers[0] == answers[1] == answers[2]
        assert (await client.get("/v1/scenarios/runs"))["total_count"] == 1
        assert (await client.get("/v1/devboxes"))["total_count"] == 1
        other = await client.post("/v1/scenarios/start_run", body, key="k2")
        assert other["id"] != answers[0]["id"]


@pytest.mark.parametrize("moments", [1, 2, 3, 5, 8, 13, 21, 34])
async def test_a_start_whose_client_goes_away_is_whole_or_never_was(tmp_path: Path, moments: int) -> None:
    """However early the request is cancelled: a devbox that is in the store boots, and has its run."""
    async with desk(tmp_path) as client:
        scenario = await client.scenario()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(client.post, "/v1/scenarios/start_run", {"scenario_id": scenario}))
            for _ in range(moments):
                await anyio.sleep(0.0005)
            tasks.cancel_scope.cancel()
        runs = (await client.get("/v1/scenarios/runs"))["runs"]
        devboxes = (await client.get("/v1/devboxes"))["devboxes"]
        assert [run["devbox_id"] for run in runs] == [devbox["id"] for devbox in devboxes]
        for devbox in devboxes:
            await client.wait_devbox(devbox["id"], "running")


async def test_a_start_is_remembered_when_the_service_starts_again(tmp_path: Path) -> None:
    """Repeating a call is finding out what became of it, even after a restart; what was alive has failed."""
    async with desk(tmp_path) as client:
        scenario = await client.scenario()
        run = await client.post("/v1/scenarios/start_run", {"scenario_id": scenario}, key="k")
    async with desk(tmp_path) as client:
        assert await client.post("/v1/scenarios/start_run", {"scenario_id": scenario}, key="k") == run
        view = await client.get(f"/v1/scenarios/runs/{run['id']}")
        assert view["state"] == "failed"
        assert run["devbox_id"] in view["failure_reason"]


async def test_score_on_scoring_or_scored_starts_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        run = await client.start(
            await client.scenario("echo x >> count; until [ -f go ]; do sleep 0.02; done; echo score=1")
        )
        first = await client.post(f"/v1/scenarios/runs/{run['id']}/score")
        assert await client.post(f"/v1/scenarios/runs/{run['id']}/score") == first
        await client.post(f"/v1/devboxes/{run['devbox_id']}/write_file_contents", {"file_path": "go", "contents": ""})
        scored = await client.wait_run(run["id"], lambda state: state != "scoring")
        assert await client.post(f"/v1/scenarios/runs/{run['id']}/score") == scored
        path = f"/v1/devboxes/{run['devbox_id']}/read_file_contents"
        answer = await client.http.post(path, json={"file_path": "count"})
        assert answer.text == "x\n"


async def test_a_scorer_in_error_fails_the_run_and_may_be_repeated(tmp_path: Path) -> None:
    """The partial result is kept; while the devbox lives the run can be scored again, as the agent left it."""
    async with desk(tmp_path) as client:
        run = await client.start(
            await client.scenario('[ -f mended ] && echo score=1.0 || { echo "no score"; exit 3; }')
        )
        failed = await client.score(run["id"])
        assert failed["state"] == "failed"
        assert "it ended in an error" in failed["failure_reason"]
        function = failed["scoring_contract_result"]["scoring_function_results"][0]
        assert function["state"] == "error"
        assert "no score" in function["output"]
        path = f"/v1/devboxes/{run['devbox_id']}/write_file_contents"
        await client.post(path, {"file_path": "mended", "contents": ""})
        scored = await client.score(run["id"])
        assert scored["state"] == "scored", scored
        assert "failure_reason" not in scored


@pytest.mark.slow
async def test_a_score_outlives_a_store_that_refuses(tmp_path: Path) -> None:
    """While nothing can be written changes are answered 503; the scorer's result is written as soon as it can be."""
    async with desk(tmp_path) as client:
        run = await client.start(await client.scenario("until [ -f go ]; do sleep 0.02; done; echo score=1"))
        await client.post(f"/v1/scenarios/runs/{run['id']}/score")
        with closing(sqlite3.connect(tmp_path / "service.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            path = f"/v1/devboxes/{run['devbox_id']}/write_file_contents"
            await client.post(path, {"file_path": "go", "contents": ""})
            refused = await client.http.post(f"/v1/devboxes/{run['devbox_id']}", content=b'{"name": "another"}')
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            other.execute("ROLLBACK")
        scored = await client.wait_run(run["id"], lambda state: state != "scoring")
        assert scored["state"] == "scored"


async def test_completing_a_running_run_gives_no_result(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        run = await client.start(await client.scenario())
        completed = await client.post(f"/v1/scenarios/runs/{run['id']}/complete")
        assert completed["state"] == "completed"
        assert "scoring_contract_result" not in completed
        assert await client.post(f"/v1/scenarios/runs/{run['id']}/complete") == completed
        refused = await client.post(f"/v1/scenarios/runs/{run['id']}/cancel", status=400)
        assert "is completed" in refused["message"]
        refused = await client.post(f"/v1/scenarios/runs/{run['id']}/score", status=400)
        assert "is completed" in refused["message"]


async def test_canceling_stops_the_scoring_and_the_devbox(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        run = await client.start(await client.scenario("sleep 600; echo score=1"))
        await client.post(f"/v1/scenarios/runs/{run['id']}/score")
        refused = await client.post(f"/v1/scenarios/runs/{run['id']}/complete", status=400)
        assert "is scoring" in refused["message"]
        canceled = await client.post(f"/v1/scenarios/runs/{run['id']}/cancel")
        assert canceled["state"] == "canceled"
        await client.wait_devbox(run["devbox_id"], "shutdown")
        assert await client.post(f"/v1/scenarios/runs/{run['id']}/cancel") == canceled
        assert await client.get(f"/v1/scenarios/runs/{run['id']}") == canceled
        assert "is canceled" in (await client.post(f"/v1/scenarios/runs/{run['id']}/complete", status=400))["message"]


async def test_canceling_a_failed_run_ends_its_devbox_and_keeps_the_failure(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        run = await client.start(await client.scenario("exit 3"))
        failed = await client.score(run["id"])
        assert await client.post(f"/v1/scenarios/runs/{run['id']}/cancel") == failed
        await client.wait_devbox(run["devbox_id"], "shutdown")
        refused = await client.post(f"/v1/scenarios/runs/{run['id']}/score", status=400)
        assert "is shutdown" in refused["message"]
        assert await client.get(f"/v1/scenarios/runs/{run['id']}") == failed


async def test_a_run_cannot_be_scored_before_its_devbox_runs(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        scenario = await client.scenario(
            environment_parameters={"launch_parameters": {"launch_commands": ["sleep 600"]}}
        )
        run = await client.post("/v1/scenarios/start_run", {"scenario_id": scenario})
        refused = await client.post(f"/v1/scenarios/runs/{run['id']}/score", status=400)
        assert run["devbox_id"] in refused["message"]
        assert (await client.get(f"/v1/scenarios/runs/{run['id']}"))["state"] == "running"


async def test_a_run_fails_with_its_devbox(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        run = await client.start(await client.scenario())
        await client.post(f"/v1/devboxes/{run['devbox_id']}/shutdown")
        failed = await client.get(f"/v1/scenarios/runs/{run['id']}")
        assert failed["state"] == "failed"
        assert failed["failure_reason"].endswith("api_shutdown")


async def test_a_run_fails_when_its_devbox_ends_under_the_scorer(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        run = await client.start(await client.scenario("sleep 600; echo score=1"))
        await client.post(f"/v1/scenarios/runs/{run['id']}/score")
        await client.post(f"/v1/devboxes/{run['devbox_id']}/shutdown")
        failed = await client.wait_run(run["id"], lambda state: state != "scoring")
        assert failed["state"] == "failed"


async def test_a_scored_run_stays_scored_when_its_devbox_ends(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        run = await client.start(await client.scenario())
        await client.score(run["id"])
        await client.post(f"/v1/devboxes/{run['devbox_id']}/shutdown")
        assert (await client.get(f"/v1/scenarios/runs/{run['id']}"))["state"] == "scored"
        assert (await client.post(f"/v1/scenarios/runs/{run['id']}/complete"))["state"] == "completed"


async def test_a_run_times_out_with_the_keep_alive_of_its_devbox(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        profile = {"launchParameters": {"keep_alive_time_seconds": 1}}
        body = {"scenario_id": await client.scenario(), "runProfile": profile}
        run = await client.post("/v1/scenarios/start_run", body)
        await client.wait_devbox(run["devbox_id"], "shutdown")
        timed_out = await client.get(f"/v1/scenarios/runs/{run['id']}")
        assert timed_out["state"] == "timeout"
        assert timed_out["duration_ms"] > 0


async def test_a_run_profile_reaches_the_devbox(tmp_path: Path) -> None:
    """Variables, secrets and files; the run's profile wins over what the scenario and the benchmark run say."""
    secret = os.environ["PATH"]
    expected = hashlib.sha256(f"run base {secret} text".encode()).hexdigest()
    script = f'printf %s "$A $B $KEY $(cat note)" | sha256sum | grep -q {expected} && echo score=1 || echo score=0'
    async with desk(tmp_path) as client:
        parameters = {"keep_alive_time_seconds": 100, "launch_commands": ["touch launched"]}
        scenario = await client.scenario(script, environment_parameters={"launch_parameters": parameters})
        base = {"envVars": {"A": "base", "B": "base"}, "purpose": "to test"}
        benchmark_run = await client.benchmark_run(scenario, runProfile=base)
        profile = {
            "envVars": {"A": "run"},
            "secrets": {"KEY": "PATH"},
            "launchParameters": {"keep_alive_time_seconds": 200},
            "mounts": [{"type": "file_mount", "target": "note", "content": "text"}],
        }
        run = await client.start(scenario, benchmark_run_id=benchmark_run, runProfile=profile)
        assert run["environment_variables"] == {"A": "run", "B": "base"}
        assert run["secrets_provided"] == {"KEY": "PATH"}
        assert run["purpose"] == "to test"
        launch = (await client.get(f"/v1/devboxes/{run['devbox_id']}"))["launch_parameters"]
        assert launch["keep_alive_time_seconds"] == 200
        assert launch["launch_commands"] == ["touch launched"]
        assert (await client.score(run["id"]))["scoring_contract_result"]["score"] == pytest.approx(1.0)
    assert not holds(tmp_path / "service.sqlite", secret)


async def test_a_start_that_lacks_something_names_it(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        scenario = await client.scenario(
            required_environment_variables=["ALPHA", "BETA"], required_secret_names=["GAMMA"]
        )
        body = {"scenario_id": scenario, "runProfile": {"envVars": {"ALPHA": "1"}}}
        message = (await client.post("/v1/scenarios/start_run", body, status=400))["message"]
        assert "runProfile.envVars lacks BETA and runProfile.secrets lacks GAMMA" in message
        body["runProfile"] = {"envVars": {"ALPHA": "1", "BETA": "2"}, "secrets": {"GAMMA": "NO_SUCH_SECRET"}}
        message = (await client.post("/v1/scenarios/start_run", body, status=400))["message"]
        assert "no secret named NO_SUCH_SECRET" in message
        assert (await client.get("/v1/devboxes"))["total_count"] == 0


async def test_a_start_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        inside, outside = await client.scenario(), await client.scenario()
        benchmark_run = await client.benchmark_run(inside)
        body = {"scenario_id": outside, "benchmark_run_id": benchmark_run}
        assert outside in (await client.post("/v1/scenarios/start_run", body, status=400))["message"]
        await client.post(f"/v1/benchmark_runs/{benchmark_run}/cancel")
        body = {"scenario_id": inside, "benchmark_run_id": benchmark_run}
        assert "is canceled" in (await client.post("/v1/scenarios/start_run", body, status=400))["message"]
        await client.post("/v1/scenarios/start_run", {"scenario_id": "scn_none"}, status=404)
        await client.post("/v1/scenarios/start_run", {"scenario_id": inside, "benchmark_run_id": "bmr_no"}, status=404)
        await client.post(f"/v1/scenarios/{inside}/archive")
        assert (
            "archived" in (await client.post("/v1/scenarios/start_run", {"scenario_id": inside}, status=400))["message"]
        )
        assert (await client.get("/v1/devboxes"))["total_count"] == 0


async def test_a_benchmark_run_completes_with_its_last_score(tmp_path: Path) -> None:
    """By itself, and without touching a devbox; `complete` afterwards lets the scored runs go."""
    async with desk(tmp_path) as client:
        good, bad = await client.scenario("echo score=1"), await client.scenario("echo score=0.5")
        benchmark_run = await client.benchmark_run(good, bad, run_name="night", metadata={"k": "v"})
        path = f"/v1/benchmark_runs/{benchmark_run}"
        assert (await client.get(path))["pending_scenarios"] == [good, bad]
        first = await client.start(good, benchmark_run_id=benchmark_run)
        assert (await client.get(path))["pending_scenarios"] == [bad]
        await client.score(first["id"])
        second = await client.start(bad, benchmark_run_id=benchmark_run)
        assert (await client.get(path))["state"] == "running"
        await client.score(second["id"])
        view = await client.get(path)
        assert (view["state"], view["score"], view["pending_scenarios"]) == ("completed", pytest.approx(0.75), [])
        assert {each["scenario_id"] for each in view["scenario_runs"]} == {good, bad}
        assert {each["scoringResult"]["score"] for each in view["scenario_runs"]} == {1.0, 0.5}
        assert view["duration_ms"] > 0
        assert (await client.get(f"/v1/devboxes/{first['devbox_id']}"))["status"] == "running"
        assert await client.post(f"{path}/complete") == view
        await client.wait_devbox(first["devbox_id"], "shutdown")
        runs = await client.get(f"{path}/scenario_runs", state="completed")
        assert [run["id"] for run in runs["runs"]] == [second["id"], first["id"]]


@pytest.mark.parametrize("end", ["complete", "cancel"])
async def test_ending_a_benchmark_run_keeps_results_and_cancels_the_rest(tmp_path: Path, end: str) -> None:
    async with desk(tmp_path) as client:
        scenarios = [await client.scenario("echo score=1"), await client.scenario("exit 3"), await client.scenario()]
        scenarios.append(await client.scenario("sleep 600; echo score=1"))
        benchmark_run = await client.benchmark_run(*scenarios)
        runs = [await client.start(scenario, benchmark_run_id=benchmark_run) for scenario in scenarios]
        await client.score(runs[0]["id"])
        await client.score(runs[1]["id"])
        await client.post(f"/v1/scenarios/runs/{runs[3]['id']}/score")
        ended = await client.post(f"/v1/benchmark_runs/{benchmark_run}/{end}")
        assert ended["state"] == {"complete": "completed", "cancel": "canceled"}[end]
        assert ended["score"] == pytest.approx(0.25)
        assert ended["pending_scenarios"] == scenarios[1:]
        states = [(await client.get(f"/v1/scenarios/runs/{run['id']}"))["state"] for run in runs]
        assert states == ["completed", "failed", "canceled", "canceled"]
        for run in runs:
            await client.wait_devbox(run["devbox_id"], "shutdown")
        assert await client.post(f"/v1/benchmark_runs/{benchmark_run}/{end}") == ended
        other = {"complete": "cancel", "cancel": "complete"}[end]
        refused = await client.post(f"/v1/benchmark_runs/{benchmark_run}/{other}", status=400)
        assert f"is {ended['state']}" in refused["message"]


async def test_a_benchmark_runs_scenarios_are_fixed_at_its_start(tmp_path: Path) -> None:
    """Scenarios added to the benchmark later are not in it."""
    async with desk(tmp_path) as client:
        first, second = await client.scenario(), await client.scenario()
        benchmark = await client.post("/v1/benchmarks", {"name": "b", "scenario_ids": [first]})
        run = await client.post("/v1/benchmarks/start_run", {"benchmark_id": benchmark["id"]}, key="k")
        await client.post(f"/v1/benchmarks/{benchmark['id']}/scenarios", {"scenarios_to_add": [second]})
        assert (await client.get(f"/v1/benchmark_runs/{run['id']}"))["pending_scenarios"] == [first]
        again = await client.post("/v1/benchmarks/start_run", {"benchmark_id": benchmark["id"]}, key="k")
        assert again == run


async def test_lists_filter_and_page(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        scenario = await client.scenario()
        benchmark_run = await client.benchmark_run(scenario, run_name="night")
        other = await client.benchmark_run(scenario, run_name="day")
        body = {"scenario_id": scenario, "benchmark_run_id": benchmark_run}
        ids = [(await client.post("/v1/scenarios/start_run", {**body, "run_name": f"run {n}"}))["id"] for n in range(3)]
        await client.post(f"/v1/scenarios/runs/{ids[0]}/cancel")
        page = await client.get("/v1/scenarios/runs", limit=2, benchmark_run_id=benchmark_run)
        assert [run["id"] for run in page["runs"]] == [ids[2], ids[1]]
        assert (page["has_more"], page["total_count"]) == (True, 3)
        after: dict[str, Any] = {"starting_after": ids[1], "include_total_count": "false"}
        rest = await client.get("/v1/scenarios/runs", limit=2, benchmark_run_id=benchmark_run, **after)
        assert [run["id"] for run in rest["runs"]] == [ids[0]]
        assert "total_count" not in rest
        filters: list[tuple[dict[str, Any], list[str]]] = [
            ({"state": "canceled,completed"}, [ids[0]]),
            ({"name": "run 1"}, [ids[1]]),
            ({"search": "RUN 2"}, [ids[2]]),
            ({"scenario_id": "scn_other"}, []),
            ({"benchmark_run_id": other}, []),
        ]
        for query, expected in filters:
            assert [run["id"] for run in (await client.get("/v1/scenarios/runs", **query))["runs"]] == expected
        named = await client.get("/v1/benchmark_runs", name="day", state="running")
        assert [run["id"] for run in named["runs"]] == [other]
        benchmarks = [run["benchmark_id"] for run in (await client.get("/v1/benchmark_runs"))["runs"]]
        both = await client.get("/v1/benchmark_runs", benchmark_id=",".join(benchmarks))
        assert [run["id"] for run in both["runs"]] == [other, benchmark_run]
        one = await client.get(f"/v1/benchmarks/{benchmarks[0]}/runs")
        assert [run["id"] for run in one["runs"]] == [other]
        assert (await client.get(f"/v1/scenarios/{scenario}/runs"))["total_count"] == 3
        await client.get("/v1/benchmark_runs/bmr_none/scenario_runs", status=404)
        await client.get("/v1/scenarios/runs", starting_after="scr_none", status=404)
        await client.get("/v1/scenarios/runs", limit=0, status=400)


async def test_the_logs_of_a_run_come_as_one_zip(tmp_path: Path) -> None:
    async with desk(tmp_path) as client:
        run = await client.start(await client.scenario("echo from the scorer; echo score=1"))
        path = f"/v1/devboxes/{run['devbox_id']}/execute_sync"
        await client.post(path, {"command": "echo from the agent"})
        await client.score(run["id"])
        answer = await client.http.post(f"/v1/scenarios/runs/{run['id']}/download_logs")
        assert answer.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            names = set(archive.namelist())
            assert {"run.json", "devbox.json", "devbox.log.jsonl", "scoring/it.txt"} <= names
            assert b"from the scorer" in archive.read("scoring/it.txt")
            outputs = [archive.read(name) for name in names if name.startswith("executions/")]
            assert outputs == [b"from the agent\n"]
            assert orjson.loads(archive.read("run.json"))["state"] == "scored"


@pytest.mark.parametrize("verb", ["complete", "cancel"])
async def test_output_of_a_sweeps_devbox_is_deleted_when_its_run_is_over(tmp_path: Path, verb: str) -> None:
    """It may have secrets, and the sweep has at home what it wants; of a run of anybody else it stays for a day."""
    async with desk(tmp_path) as client:
        scenario = await client.scenario()
        runs = [await client.start(scenario, metadata=metadata) for metadata in ({"sweep": "s1"}, {"who": "else"})]
        for run in runs:
            path = f"/v1/devboxes/{run['devbox_id']}"
            await client.post(f"{path}/execute_sync", {"command": "echo a secret"})
            await client.post(f"{path}/execute_async", {"command": "while :; do echo more; sleep 0.01; done"})
            await client.score(run["id"])
        gone, kept = (tmp_path / "output" / run["devbox_id"] for run in runs)
        assert gone.exists()
        for run in runs:
            await client.post(f"/v1/scenarios/runs/{run['id']}/{verb}")
        await until(lambda: not gone.exists(), "it is still there")
        await client.wait_devbox(runs[1]["devbox_id"], "shutdown")
        assert list(kept.iterdir())
        assert not gone.exists()
