"""Every method of the published client that concerns benchmarks, scenarios and devboxes, against the served service.

Replies are judged by the client's own types, strictly: it does not do that itself, so nothing else would notice a field
that is missing or of another type. What those types do not have is listed here, as the documentation of our extras.
"""

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from pydantic import BaseModel
from runloop_api_client import (
    APIStatusError,
    AsyncRunloop,
    DefaultAioHttpClient,
    DefaultAsyncHttpxClient,
    DefaultHttpxClient,
    Runloop,
)
from runloop_api_client.lib.polling import PollingConfig

from orchestrator.common.address import Address
from orchestrator.core.protocol import Isolation
from orchestrator.service.server import serve
from tests.waiting import poll

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),  # methods that the client itself gave up
]

EXTRAS = {
    "pending_scenarios",  # of a benchmark run: what is not scored, completed or alive in it
    "scenario_runs",  # of a benchmark run: the results in it, as clients before 1.0 read them
    "failure_reason",  # of a scenario run: why it failed or timed out
    "failure_message",  # of a devbox: the same in words
    "seconds",  # of a scoring function's result: how long it took
    "isolation",  # of a devbox: where it came from
    "enforced_limits",  # of a devbox: what the kernel really holds it to
    "network",  # of a devbox: what it reaches, and how
    "home",  # of a devbox: its user's folder, as commands in it see it
    "working_directory",  # of a devbox: where commands start
    "installed",  # of a devbox: the keys of the installs that are in it
    "scoring",  # of a scenario run: where its scorers ran, and what its agent left
    "failed_install",  # of a devbox: the key of the install that it could not be given
}
RESOURCES = (
    "benchmarks",
    "benchmark_runs",
    "benchmark_jobs",
    "scenarios",
    "scenarios.runs",
    "scenarios.scorers",
    "devboxes",
    "devboxes.executions",
    "devboxes.disk_snapshots",
    "devboxes.logs",
    "blueprints",
    "objects",
    "secrets",
)
#: What no provider of ours can do, or what `sweep` itself is for: answered 404 or 405 with a word of explanation.
REFUSED = {
    "benchmark_jobs.create": {"name": "job"},
    "benchmark_jobs.list": {},
    "benchmark_jobs.retrieve": {"id": "bmj_1"},
    "devboxes.create_gateway_token": None,
    "devboxes.create_mcp_token": None,
    "devboxes.create_pty_tunnel": None,
    "devboxes.create_ssh_key": {"id": "dbx_1"},
    "devboxes.enable_tunnel": {"id": "dbx_1"},
    "devboxes.remove_tunnel": None,
    "devboxes.retrieve_resource_usage": {"id": "dbx_1"},
    "devboxes.watch_evictions": None,
    "secrets.create": {"name": "KEY", "value": "v"},
    "secrets.delete": {"name": "KEY"},
    "secrets.retrieve": {"name": "KEY"},
    "secrets.update": {"name": "KEY", "value": "v"},
}
#: Return the reply to an earlier request than their last.
COMPOSED = {"scenarios.start_run_and_await_env_ready"}
POLLING = PollingConfig(interval_seconds=0.05, max_attempts=600)
SCORER = {"type": "bash_script_scorer", "bash_script": "test -f done && echo score=0.5 || echo score=0.0"}
SCENARIO: dict[str, Any] = {
    "input_context": {"problem_statement": "Make done.", "additional_context": {"hint": ["touch"]}},
    "scoring_contract": {"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": SCORER}]},
    "metadata": {"kind": "test"},
    "reference_output": "touch done",
    "environment_parameters": {"launch_parameters": {"keep_alive_time_seconds": 600}},
    "scorer_timeout_sec": 60,
    "validation_type": "FORWARD",
}


class Walker:
    """Calls methods of a client by name, whichever kind of client it is, and judges every reply."""

    def __init__(self, client: Runloop | AsyncRunloop, replies: list[httpx.Response]) -> None:
        self._client = client
        self._replies = replies
        self.called: set[str] = set()

    async def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method; a model that it returns is what the wire said, and of the right form."""
        self.called.add(name)
        found: Any = self._client
        for part in name.split("."):
            found = getattr(found, part)
        result = found(*args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, BaseModel) and name not in COMPOSED:
            judge(type(result), self._replies[-1].text)
        return result

    async def items(self, name: str, /, **kwargs: Any) -> list[Any]:
        """Walk a list through its pages."""
        page = await self.call(name, **kwargs)
        found = list(page._get_page_items())
        while page.has_next_page():
            page = page.get_next_page()
            page = await page if inspect.isawaitable(page) else page
            found += page._get_page_items()
        return found

    async def data(self, name: str, /, *args: Any, **kwargs: Any) -> bytes:
        """Call a method that downloads."""
        answer = await self.call(name, *args, **kwargs)
        content = answer.read()
        return bytes(await content if inspect.isawaitable(content) else content)

    async def stream(self, name: str, /, *args: Any, **kwargs: Any) -> str:
        """Call a method that streams output, to its end."""
        stream = await self.call(name, *args, **kwargs)
        if hasattr(stream, "__aiter__"):
            return "".join([chunk.output async for chunk in stream])
        return "".join(chunk.output for chunk in stream)


def judge(model: type[BaseModel], text: str) -> None:
    """Read a reply strictly as the client's type, and look for what the type does not have."""
    unknown = extras(model.model_validate_json(text, strict=True)) - EXTRAS
    assert not unknown, f"{model.__name__} has {unknown}"


def extras(value: Any) -> set[str]:
    if isinstance(value, BaseModel):
        fields = [getattr(value, name) for name in type(value).model_fields]
        return set(value.model_extra or {}).union(*(extras(field) for field in fields))
    if isinstance(value, list):
        return set().union(*(extras(item) for item in value))
    return set()


def write_benchmark(folder: Path) -> None:
    """A benchmark of one scenario, in the layout that the service reads."""
    files = {
        "benchmark.toml": 'name = "tiny"\ndescription = "One file to make."\n',
        "make-done/task.toml": 'environment.allow_internet = false\n[[scorers]]\nname = "it"\ntype = "command_scorer"\n'
        'command = "test -f done"\n',
        "make-done/instruction.md": "Make a file named done.\n",
        "make-done/environment/README": "Nothing is here yet.\n",
        "make-done/solution/solve.sh": "touch done\n",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(scope="module", params=list(Isolation))
def address(
    request: pytest.FixtureRequest, obstacle: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Address]:
    """A service in a thread of its own, for each provider that this machine permits."""
    isolation: Isolation = request.param
    if isolation is Isolation.LOCAL and obstacle:
        pytest.skip(obstacle)
    folder = tmp_path_factory.mktemp(isolation)
    write_benchmark(folder / "tiny")
    start = partial(serve, "127.0.0.1", 0, None, folder / "state", [folder / "tiny"], isolation, None)
    with start_blocking_portal() as portal:
        future, address = portal.start_task(start)
        yield address
        future.cancel()


@asynccontextmanager
async def walker(address: Address, kind: str) -> AsyncIterator[Walker]:
    replies: list[httpx.Response] = []
    common: dict[str, Any] = {"bearer_token": address.token, "base_url": address.url, "max_retries": 0}
    if kind == "sync":
        http = DefaultHttpxClient(event_hooks={"response": [replies.append]}, trust_env=False)
        with Runloop(http_client=http, **common) as client:
            yield Walker(client, replies)
        return

    async def note(reply: httpx.Response) -> None:
        replies.append(reply)

    make = {"async": DefaultAsyncHttpxClient, "aiohttp": DefaultAioHttpClient}[kind]
    async with AsyncRunloop(
        http_client=make(event_hooks={"response": [note]}, trust_env=False), **common
    ) as async_client:
        yield Walker(async_client, replies)


def served_methods() -> set[str]:
    """All methods of the client that this service could be asked for."""
    client = Runloop(bearer_token="x", base_url="http://127.0.0.1:9")
    found = set()
    for resource in RESOURCES:
        thing: Any = client
        for part in resource.split("."):
            thing = getattr(thing, part)
        found |= {
            f"{resource}.{name}" for name, _ in inspect.getmembers(type(thing), inspect.isfunction) if name[0] != "_"
        }
    return found


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        (Isolation.NONE, "sync"),
        (Isolation.NONE, "async"),
        (Isolation.NONE, "aiohttp"),
        (Isolation.LOCAL, "aiohttp"),
    ],
    indirect=["address"],
)
async def test_every_method_of_the_client_is_answered(address: Address, kind: str) -> None:
    """Served ones with replies of the client's own types, the others with a refusal in words."""
    async with walker(address, kind) as walk:
        scenarios = await walk_definitions(walk)
        run = await walk_scenario_run(walk, scenarios[0])
        await walk_devbox(walk)
        await walk_benchmark_run(walk, scenarios)
        await walk_scorers(walk)
        await walk_blueprints(walk)
        await walk_objects(walk)
        assert (await walk.call("secrets.list")).secrets == []
        await walk_refusals(walk)
        assert run
        assert walk.called == served_methods()


async def walk_definitions(walk: Walker) -> list[str]:
    names = ("one", "two")
    scenarios = [(await walk.call("scenarios.create", name=name, **SCENARIO)).id for name in names]
    view = await walk.call("scenarios.retrieve", scenarios[0])
    assert view.input_context.problem_statement == "Make done."
    assert view.environment.launch_parameters.keep_alive_time_seconds == 600
    assert view.scoring_contract.scoring_function_parameters[0].scorer.bash_script == SCORER["bash_script"]
    updated = await walk.call("scenarios.update", scenarios[0], metadata={}, reference_output=None)
    assert (updated.metadata, updated.reference_output) == ({}, "touch done")
    created = await walk.call("benchmarks.create", name="both", scenario_ids=scenarios[:1], description="d")
    benchmark = await walk.call("benchmarks.update_scenarios", created.id, scenarios_to_add=scenarios[1:])
    assert benchmark.scenario_ids == scenarios
    renamed = await walk.call("benchmarks.update", created.id, name="pair")
    assert (renamed.name, renamed.description, renamed.scenario_ids) == ("pair", "d", scenarios)
    assert await walk.call("benchmarks.retrieve", created.id) == renamed
    definitions = await walk.call("benchmarks.definitions", created.id, limit=1)
    assert (definitions.scenarios[0].id, definitions.has_more) == (scenarios[0], True)
    listed = await walk.items("scenarios.list", benchmark_id=created.id, limit=1)
    assert {scenario.id for scenario in listed} == set(scenarios)
    assert created.id in {item.id for item in await walk.items("benchmarks.list", limit=1)}
    public = await walk.items("benchmarks.list_public")
    assert [item.name for item in public] == ["tiny"]
    assert [item.id for item in await walk.items("scenarios.list_public")] == public[0].scenario_ids
    spare = await walk.call("scenarios.create", name="spare", **SCENARIO)
    assert (await walk.call("scenarios.archive", spare.id)).status == "archived"
    return scenarios


async def walk_scenario_run(walk: Walker, scenario: str) -> str:
    run = await walk.call("scenarios.start_run", scenario_id=scenario, run_name="by hand", metadata={"a": "b"})
    await walk.call("devboxes.await_running", run.devbox_id)
    await walk.call("devboxes.write_file_contents", run.devbox_id, file_path="done", contents="")
    assert (await walk.call("scenarios.runs.score", run.id)).state == "scoring"
    scored = await walk.call("scenarios.runs.await_scored", run.id, polling_config=POLLING)
    assert scored.scoring_contract_result.score == pytest.approx(0.5)
    assert (await walk.call("scenarios.runs.retrieve", run.id)).state == "scored"
    assert (await walk.data("scenarios.runs.download_logs", run.id)).startswith(b"PK")
    assert (await walk.call("scenarios.runs.complete", run.id)).state == "completed"
    listed = await walk.items("scenarios.runs.list", scenario_id=scenario, state="completed", limit=1)
    assert run.id in {item.id for item in listed}
    other = await walk.call("scenarios.start_run_and_await_env_ready", scenario_id=scenario)
    assert (await walk.call("scenarios.runs.cancel", other.id)).state == "canceled"
    third = await walk.call("scenarios.start_run_and_await_env_ready", scenario_id=scenario)
    done = await walk.call("scenarios.runs.score_and_await", third.id, polling_config=POLLING)
    assert done.state == "scored"
    done = await walk.call("scenarios.runs.score_and_complete", third.id, polling_config=POLLING)
    assert done.state == "completed"
    return str(run.id)


async def walk_devbox(walk: Walker) -> None:
    devbox = (await walk.call("devboxes.create", name="mine")).id
    await walk.call("devboxes.await_running", devbox)
    await walk.call("devboxes.update", devbox, metadata={"x": "y"})
    assert (await walk.call("devboxes.retrieve", devbox)).metadata == {"x": "y"}
    assert devbox in {item.id for item in await walk.items("devboxes.list", limit=1)}
    await walk.call("devboxes.keep_alive", devbox)
    await walk_commands(walk, devbox)
    await walk.call("devboxes.upload_file", devbox, path="up", file=b"bytes")
    assert await walk.data("devboxes.download_file", devbox, path="up") == b"bytes"
    assert await walk.call("devboxes.read_file_contents", devbox, file_path="up") == "bytes"
    await walk.call("devboxes.logs.list", devbox)
    await walk_snapshots(walk, devbox)
    assert (await walk.call("devboxes.suspend", devbox)).status == "suspended"
    assert (await walk.call("devboxes.await_suspended", devbox)).status == "suspended"
    assert (await walk.call("devboxes.resume", devbox)).status == "running"
    assert (await walk.call("devboxes.shutdown", devbox)).status == "shutdown"
    other = await walk.call("devboxes.create_and_await_running")
    await walk.call("devboxes.shutdown", other.id)


async def walk_snapshots(walk: Walker, devbox: str) -> None:
    first = await walk.call("devboxes.snapshot_disk", devbox, name="first", metadata={"a": "b"})
    begun = await walk.call("devboxes.snapshot_disk_async", devbox, commit_message="why")
    done = await walk.call("devboxes.disk_snapshots.await_completed", begun.id, polling_config=POLLING)
    assert (done.status, done.snapshot.commit_message) == ("complete", "why")
    assert (await walk.call("devboxes.disk_snapshots.query_status", first.id)).snapshot.metadata == {"a": "b"}
    assert (await walk.call("devboxes.disk_snapshots.update", first.id, name="other")).name == "other"
    listed = [item.id for item in await walk.items("devboxes.disk_snapshots.list", devbox_id=devbox, limit=1)]
    assert listed == [begun.id, first.id]
    assert [item.id for item in await walk.items("devboxes.list_disk_snapshots", devbox_id=devbox)] == listed
    restored = await walk.call("devboxes.create_and_await_running", snapshot_id=first.id)
    assert await walk.call("devboxes.read_file_contents", restored.id, file_path="up") == "bytes"
    await walk.call("devboxes.shutdown", restored.id)
    await walk.call("devboxes.disk_snapshots.delete", first.id)
    await walk.call("devboxes.delete_disk_snapshot", begun.id)


async def walk_commands(walk: Walker, devbox: str) -> None:
    assert (await walk.call("devboxes.execute_sync", devbox, command="echo a")).stdout == "a\n"
    assert (await walk.call("devboxes.executions.execute_sync", devbox, command="echo a")).stdout == "a\n"
    assert (await walk.call("devboxes.execute", devbox, command="echo b")).stdout == "b\n"
    assert (await walk.call("devboxes.execute_and_await_completion", devbox, command="exit 3")).exit_status == 3
    echo = "cat; echo e >&2"
    started = await walk.call("devboxes.execute_async", devbox, command=echo, attach_stdin=True)
    names = {"devbox_id": devbox}
    await walk.call("devboxes.executions.send_std_in", started.execution_id, **names, text="in\n")
    await walk.call("devboxes.executions.send_std_in", started.execution_id, **names, signal="EOF")
    ended = await walk.call("devboxes.executions.await_completed", started.execution_id, **names)
    assert (ended.exit_status, ended.stdout, ended.stderr) == (0, "in\n", "e\n")
    assert (await walk.call("devboxes.executions.retrieve", started.execution_id, **names)).status == "completed"
    assert await walk.stream("devboxes.executions.stream_stdout_updates", started.execution_id, **names) == "in\n"
    assert await walk.stream("devboxes.executions.stream_stderr_updates", started.execution_id, **names) == "e\n"
    sleeping = await walk.call("devboxes.executions.execute_async", devbox, command="sleep 600")
    await walk.call("devboxes.executions.kill", sleeping.execution_id, **names)
    waiting = {"execution_id": sleeping.execution_id, **names, "statuses": ["completed"]}
    assert (await walk.call("devboxes.wait_for_command", **waiting)).status == "completed"


async def walk_benchmark_run(walk: Walker, scenarios: list[str]) -> None:
    benchmark = await walk.call("benchmarks.create", name="again", scenario_ids=scenarios)
    profile = {"env_vars": {"A": "1"}, "purpose": "test", "launch_parameters": {"keep_alive_time_seconds": 300}}
    run = await walk.call(
        "benchmarks.start_run", benchmark_id=benchmark.id, run_name="r", metadata={"m": "n"}, run_profile=profile
    )
    assert (run.state, run.environment_variables, run.pending_scenarios) == ("running", {"A": "1"}, scenarios)
    for scenario in scenarios:
        started = await walk.call(
            "scenarios.start_run_and_await_env_ready", scenario_id=scenario, benchmark_run_id=run.id
        )
        assert started.environment_variables == {"A": "1"}
        await walk.call("scenarios.runs.score_and_complete", started.id, polling_config=POLLING)
    ended = await walk.call("benchmark_runs.retrieve", run.id)
    assert (ended.state, ended.score, ended.pending_scenarios) == ("completed", 0.0, [])
    assert len(await walk.items("benchmark_runs.list_scenario_runs", id=run.id, limit=1, state="completed")) == 2
    assert (await walk.call("benchmark_runs.complete", run.id)).state == "completed"
    assert [item.id for item in await walk.items("benchmark_runs.list", benchmark_id=benchmark.id)] == [run.id]
    other = await walk.call("benchmarks.start_run", benchmark_id=benchmark.id)
    assert (await walk.call("benchmark_runs.cancel", other.id)).state == "canceled"


async def walk_scorers(walk: Walker) -> None:
    name = f"mine-{len(await walk.items('scenarios.scorers.list'))}"
    scorer = await walk.call("scenarios.scorers.create", type=name, bash_script="echo score=1.0")
    updated = await walk.call("scenarios.scorers.update", scorer.id, type=name, bash_script="echo score=0.0")
    assert updated.bash_script == "echo score=0.0"
    assert (await walk.call("scenarios.scorers.retrieve", scorer.id)).type == name
    assert scorer.id in {item.id for item in await walk.items("scenarios.scorers.list", limit=1)}


async def walk_blueprints(walk: Walker) -> None:
    asked: dict[str, Any] = {
        "name": "mine",
        "file_mounts": {"a": "b"},
        "system_setup_commands": ["true"],
        "launch_parameters": {"keep_alive_time_seconds": 300},
        "metadata": {"c": "d"},
    }
    made = await walk.call("blueprints.create", **asked)
    assert (await walk.call("blueprints.await_build_complete", made.id)).parameters.file_mounts == {"a": "b"}
    assert "RUN" in (await walk.call("blueprints.preview", **asked)).dockerfile
    assert (await walk.call("blueprints.retrieve", made.id)).metadata == {"c": "d"}
    other = await walk.call("blueprints.create_and_await_build_complete", name="other", base_blueprint_id=made.id)
    assert other.base_blueprint_id == made.id
    assert made.id in {item.id for item in await walk.items("blueprints.list", limit=1)}
    assert await walk.items("blueprints.list_public") == []
    assert (await walk.call("blueprints.logs", made.id)).logs == []
    await walk.call("blueprints.delete", made.id)


async def walk_objects(walk: Walker) -> None:
    made = await walk.call("objects.create", name="mine", content_type="text", metadata={"a": "b"}, ttl_ms=600_000)
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.put(made.upload_url, content=b"text")).status_code == 200
    assert (await walk.call("objects.complete", made.id)).state == "READ_ONLY"
    assert (await walk.call("objects.retrieve", made.id)).size_bytes == len("text")
    url = (await walk.call("objects.download", made.id)).download_url
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(url)).text == "text"
    assert made.id in {item.id for item in await walk.items("objects.list", limit=1)}
    assert await walk.items("objects.list_public") == []
    assert (await walk.call("objects.delete", made.id)).state == "DELETED"


async def walk_refusals(walk: Walker) -> None:
    for name, arguments in REFUSED.items():
        if arguments is None:
            walk.called.add(name)
            continue
        with pytest.raises(APIStatusError) as caught:
            await walk.call(name, **arguments)
        assert caught.value.status_code in {404, 405}
        assert "sweep" in caught.value.message


async def test_the_documented_flow_of_one_run(address: Address) -> None:
    """The published documentation's flow, on a scenario that comes from a folder, with the client's own objects."""
    async with walker(address, "aiohttp") as walk:
        benchmark = (await walk.items("benchmarks.list_public"))[0]
        run = await walk.call("scenarios.start_run", scenario_id=benchmark.scenario_ids[0], run_name="r")
        await walk.call("devboxes.await_running", run.devbox_id)
        scenario = await walk.call("scenarios.retrieve", run.scenario_id)
        assert "named done" in scenario.input_context.problem_statement
        await walk.call("devboxes.execute_sync", run.devbox_id, command="touch done")
        done = await walk.call("scenarios.runs.score_and_complete", run.id, polling_config=POLLING)
        assert done.scoring_contract_result.score == pytest.approx(1.0)


async def test_the_documented_flow_of_a_benchmark_on_the_old_paths(address: Address) -> None:
    """Clients before 1.3 ask below /v1/benchmarks/runs, and look for `pending_scenarios`."""
    headers = {"authorization": f"Bearer {address.token}"}
    async with httpx.AsyncClient(base_url=address.url, headers=headers, timeout=40, trust_env=False) as http:

        async def ask(method: str, path: str, body: Any = None) -> Any:
            answer = await http.request(method, path, json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        benchmark = (await ask("GET", "/v1/benchmarks/list_public"))["benchmarks"][0]
        run = await ask("POST", "/v1/benchmarks/start_run", {"benchmark_id": benchmark["id"], "run_name": "old"})
        for scenario in run["pending_scenarios"]:
            body = {"scenario_id": scenario, "benchmark_run_id": run["id"]}
            started = await ask("POST", "/v1/scenarios/start_run", body)
            wait = {"statuses": ["running", "failure"], "timeout_seconds": 30}
            devbox = await ask("POST", f"/v1/devboxes/{started['devbox_id']}/wait_for_status", wait)
            assert devbox["status"] == "running", devbox
            await ask("POST", f"/v1/scenarios/runs/{started['id']}/score")
            look = partial(ask, "GET", f"/v1/scenarios/runs/{started['id']}")
            await poll(look, lambda view: view["state"] == "scored", "it is not scored")
        view = await ask("GET", f"/v1/benchmarks/runs/{run['id']}")
        assert (view["state"], view["pending_scenarios"], view["score"]) == ("completed", [], 0.0)
        assert [each["scoringResult"]["score"] for each in view["scenario_runs"]] == [0.0]
        assert await ask("POST", f"/v1/benchmarks/runs/{run['id']}/complete") == view
        runs = await ask("GET", f"/v1/benchmarks/runs/{run['id']}/scenario_runs")
        assert [item["state"] for item in runs["runs"]] == ["completed"]
        assert run["id"] in {item["id"] for item in (await ask("GET", "/v1/benchmarks/runs"))["runs"]}
