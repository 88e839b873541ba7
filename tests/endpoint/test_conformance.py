"""The promises of `endpoint.protocols`, claimed of every implementation: the gateway before the real service, over
a real socket, as ours and as a foreign endpoint, and the endpoint in memory, with and without idempotency keys.

A claim that an implementation does not make is skipped there by name.
"""

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from shlex import quote
from typing import Any, Final

import anyio
import httpx
import pytest

from orchestrator.agentkit.agent import whole
from orchestrator.common.address import Address
from orchestrator.core.errors import Conflicted, DevboxFailed, DevboxLost, Missing
from orchestrator.core.protocol import DEVBOX_ALIVE
from orchestrator.core.records import Benchmark, Execution, Needs, ScenarioRun, ScenarioSummary
from orchestrator.endpoint.gateway import Gateway
from orchestrator.endpoint.protocols import SETTLEMENTS, Endpoint
from orchestrator.testing.fakes import MemoryEndpoint, Script
from tests.waiting import poll, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("conformance")]

START_S: Final = 60.0
#: The scenarios of the benchmark, each with its scorer and the commands that its devbox boots with.
SCENARIOS: Final = {
    "sound": ("echo score=1.0", []),
    "slow": ("sleep 1; echo score=1.0", []),
    "broken": ("exit 3", []),
    "unbootable": ("echo score=1.0", ["exit 3"]),
}
NUMBERS: Final = count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An endpoint that is held to the contract, and its benchmark of the `SCENARIOS`."""

    endpoint: Endpoint
    benchmark: Benchmark
    #: What happens in an endpoint in memory.
    script: Script | None = None
    #: What it promises beyond the least: `keys` have their effect once, a `scored` run may be scored again, devboxes
    #: have the `labels` of their runs, and end by themselves after their `keep_alive`.
    promises: frozenset[str] = frozenset()

    def need(self, promise: str) -> None:
        if promise not in self.promises:
            pytest.skip(f"does not promise: {promise}")

    async def start(
        self, scenario: str = "sound", *, benchmark_run: str | None = None, key: str = "", keep_alive: int = 600
    ) -> ScenarioRun:
        """Start a run; its devbox boots."""
        if self.script is not None:
            self.script.broken_scorings = int(scenario == "broken")
            self.script.failing_boots = int(scenario == "unbootable")
        return await self.endpoint.start_run(
            self.benchmark.scenario_ids[list(SCENARIOS).index(scenario)],
            benchmark_run_id=benchmark_run,
            name="a run",
            metadata={"sweep": "s", "trial": "t"},
            keep_alive=keep_alive,
            needs=Needs(),
            key=key or fresh(),
        )

    async def running(self, scenario: str = "sound", *, benchmark_run: str | None = None) -> ScenarioRun:
        """Start a run, and wait until its devbox runs."""
        run = await self.start(scenario, benchmark_run=benchmark_run)
        await self.endpoint.wait_running(run.devbox_id)
        return run

    async def scored(self, *, benchmark_run: str | None = None) -> ScenarioRun:
        run = await self.running(benchmark_run=benchmark_run)
        await self.endpoint.score(run.id, key=fresh())
        return await self.endpoint.wait_scored(run.id)

    async def benchmark_run(self, key: str = "") -> str:
        """Start a benchmark run; returns its id."""
        run = await self.endpoint.start_benchmark_run(
            self.benchmark.id, name="a benchmark run", metadata={"sweep": "s"}, key=key or fresh()
        )
        return run.id

    async def execute(
        self, devbox: str, *, prints: str = "", takes: float = 0.0, ends_with: int = 0, key: str = ""
    ) -> Execution:
        """Start a command that does this."""
        if self.script is not None:
            self.script.output, self.script.solve, self.script.exit_status = prints, takes, ends_with
        command = f"printf %s {quote(prints)}; sleep {takes}; exit {ends_with}"
        return await self.endpoint.execute(devbox, command, key=key or fresh())

    async def state(self, run: ScenarioRun) -> str:
        return (await self.endpoint.run(run.id)).state

    async def status(self, run: ScenarioRun) -> str:
        return (await self.endpoint.devbox(run.devbox_id)).status


def fresh() -> str:
    """A key that was never used."""
    return f"key {next(NUMBERS)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A service process, and the id of the benchmark that was made in it."""

    address: Address
    benchmark: str = field(default="")


@contextmanager
def serving(state: Path, *words: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "orchestrator", "serve", "--port", "0", "--isolation", "none", "--quiet"]
    with subprocess.Popen([*command, "--state", str(state), *words]) as process:
        try:
            wait_until(lambda: Address.read(state) or process.poll() is not None, "the service does not start")
            address = Address.read(state)
            assert address, "the service ended"
            headers = {"authorization": f"Bearer {address.token}"}
            with httpx.Client(base_url=address.url, headers=headers, trust_env=False) as http:
                scenarios = [define(http, name, *parts) for name, parts in SCENARIOS.items()]
                made = http.post("/v1/benchmarks", json={"name": "conformance", "scenario_ids": scenarios})
            yield Served(address=address, benchmark=made.json()["id"])
        finally:
            process.terminate()


def define(http: httpx.Client, name: str, script: str, boot: list[str]) -> str:
    scorer = {"type": "bash_script_scorer", "bash_script": script}
    body = {
        "name": name,
        "input_context": {"problem_statement": f"Solve {name}."},
        "scoring_contract": {"scoring_function_parameters": [{"name": "tests", "weight": 1.0, "scorer": scorer}]},
        "environment_parameters": {"launch_parameters": {"launch_commands": boot}},
    }
    made = http.post("/v1/scenarios", json=body)
    assert made.is_success, made.text
    return str(made.json()["id"])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("service") / "state") as served:
        yield served


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("foreign") / "state", "--foreign") as served:
        yield served


EVERYTHING: Final = frozenset({"keys", "scored", "labels", "keep_alive"})


@pytest.fixture(params=["service", "foreign", "memory", "memory without keys"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    kind = request.param
    if kind in {"service", "foreign"}:
        served: Served = request.getfixturevalue(kind)
        async with Gateway.open(served.address.url, served.address.token, rate=None) as endpoint:
            (benchmark,) = [each for each in await endpoint.benchmarks() if each.id == served.benchmark]
            promises = EVERYTHING if kind == "service" else frozenset({"keep_alive"})
            yield Subject(endpoint=endpoint, benchmark=benchmark, promises=promises)
        return
    script = Script(boot=0.02, scoring=0.02, is_forgetful=kind != "memory")
    memory = MemoryEndpoint([ScenarioSummary(id=f"scn_{name}", name=name) for name in SCENARIOS], script)
    (benchmark,) = await memory.benchmarks()
    promises = EVERYTHING - {"keep_alive"} if kind == "memory" else frozenset({"labels"})
    yield Subject(endpoint=memory, benchmark=benchmark, script=script, promises=promises)


async def settled(look: Callable[[], Awaitable[Any]], expected: object) -> None:
    """Wait until a look finds this: an endpoint may answer before it has done all that follows."""
    await poll(look, lambda found: found == expected, f"it does not become {expected}")


# Definitions


async def test_benchmarks_are_listed_once_each_with_their_scenarios(subject: Subject) -> None:
    listed = await subject.endpoint.benchmarks()
    assert [each for each in listed if each.id == subject.benchmark.id] == [subject.benchmark]
    assert len(subject.benchmark.scenario_ids) == len(SCENARIOS)
    assert subject.benchmark.name


async def test_summaries_are_in_the_order_of_the_benchmark_and_no_more_than_asked_for(subject: Subject) -> None:
    whole_list = await subject.endpoint.summaries(subject.benchmark)
    assert [each.id for each in whole_list] == list(subject.benchmark.scenario_ids)
    assert [each.name for each in whole_list] == list(SCENARIOS)
    assert await subject.endpoint.summaries(subject.benchmark, 2) == whole_list[:2]


async def test_scenarios_that_the_globs_leave_out_are_listed_all_the_same(subject: Subject) -> None:
    listed = await subject.endpoint.summaries(subject.benchmark, include=["s*"], exclude=["slow"])
    assert [each.id for each in listed] == list(subject.benchmark.scenario_ids)


async def test_a_scenario_has_its_text(subject: Subject) -> None:
    identity = subject.benchmark.scenario_ids[0]
    scenario = await subject.endpoint.scenario(identity)
    assert scenario.id == identity
    assert scenario.name
    assert scenario.prompt.startswith("Solve ")


async def test_an_endpoint_without_secrets_names_none(subject: Subject) -> None:
    assert await subject.endpoint.secret_names() == frozenset()


# Benchmark runs


async def test_a_benchmark_run_is_as_it_was_asked_for(subject: Subject) -> None:
    run = await subject.endpoint.benchmark_run(await subject.benchmark_run())
    assert (run.benchmark_id, run.state, run.name) == (subject.benchmark.id, "running", "a benchmark run")
    assert run.metadata == {"sweep": "s"}


async def test_a_key_starts_one_benchmark_run(subject: Subject) -> None:
    subject.need("keys")
    key = fresh()
    assert await subject.benchmark_run(key) == await subject.benchmark_run(key) != await subject.benchmark_run()


async def test_benchmark_runs_are_listed_by_benchmark_and_state(subject: Subject) -> None:
    alive, over = await subject.benchmark_run(), await subject.benchmark_run()
    await subject.endpoint.cancel_benchmark_run(over)

    async def listed(**filters: str) -> set[str]:
        return {run.id for run in await subject.endpoint.list_benchmark_runs(**filters)} & {alive, over}

    assert await listed() == {alive, over}
    assert await listed(benchmark=subject.benchmark.id) == {alive, over}
    assert await listed(state="running") == {alive}
    assert await listed(benchmark=subject.benchmark.id, state="canceled") == {over}
    assert await listed(benchmark="bmd_none") == set()


async def test_completing_a_benchmark_run_completes_what_is_scored_and_cancels_what_runs(subject: Subject) -> None:
    whole_run = await subject.benchmark_run()
    scored = await subject.scored(benchmark_run=whole_run)
    running = await subject.running("slow", benchmark_run=whole_run)
    await subject.endpoint.complete_benchmark_run(whole_run)
    assert (await subject.endpoint.benchmark_run(whole_run)).state == "completed"
    assert (await subject.state(scored), await subject.state(running)) == ("completed", "canceled")
    for run in (scored, running):
        await settled(partial(subject.status, run), "shutdown")


async def test_canceling_a_benchmark_run_cancels_what_runs_in_it(subject: Subject) -> None:
    whole_run = await subject.benchmark_run()
    running = await subject.start(benchmark_run=whole_run)
    await subject.endpoint.cancel_benchmark_run(whole_run)
    assert (await subject.endpoint.benchmark_run(whole_run)).state == "canceled"
    assert await subject.state(running) == "canceled"


@pytest.mark.parametrize(("end", "state"), [("complete", "completed"), ("cancel", "canceled")])
async def test_a_benchmark_run_ends_once(subject: Subject, end: str, state: str) -> None:
    run = await subject.benchmark_run()
    for verb in (end, "complete", "cancel"):
        await getattr(subject.endpoint, f"{verb}_benchmark_run")(run)
        assert (await subject.endpoint.benchmark_run(run)).state == state


async def test_in_a_benchmark_run_that_has_ended_nothing_starts(subject: Subject) -> None:
    run = await subject.benchmark_run()
    await subject.endpoint.complete_benchmark_run(run)
    with pytest.raises(Conflicted):
        await subject.start(benchmark_run=run)


# Scenario runs


async def test_a_run_is_as_it_was_asked_for(subject: Subject) -> None:
    whole_run = await subject.benchmark_run()
    started = await subject.start(benchmark_run=whole_run)
    run = await subject.endpoint.run(started.id)
    assert run.devbox_id == started.devbox_id
    assert (run.scenario_id, run.benchmark_run_id) == (subject.benchmark.scenario_ids[0], whole_run)
    assert (run.state, run.score, run.scorers) == ("running", None, ())
    assert run.metadata == {"sweep": "s", "trial": "t"}


async def test_a_devbox_has_the_metadata_of_its_run(subject: Subject) -> None:
    subject.need("labels")
    run = await subject.start()
    assert (await subject.endpoint.devbox(run.devbox_id)).metadata == run.metadata


async def test_a_key_starts_one_run_with_one_devbox(subject: Subject) -> None:
    subject.need("keys")
    key = fresh()
    before = len(await subject.endpoint.list_devboxes())
    first, second = await subject.start(key=key), await subject.start(key=key)
    assert (first.id, first.devbox_id) == (second.id, second.devbox_id)
    assert len(await subject.endpoint.list_devboxes()) == before + 1


async def test_runs_are_listed_by_benchmark_run_scenario_and_state(subject: Subject) -> None:
    whole_run = await subject.benchmark_run()
    sound, slow = await subject.start(benchmark_run=whole_run), await subject.start("slow", benchmark_run=whole_run)
    apart = await subject.start()
    await subject.endpoint.cancel(slow.id)

    async def listed(**filters: str) -> set[str]:
        return {run.id for run in await subject.endpoint.list_runs(**filters)} & {sound.id, slow.id, apart.id}

    assert await listed() == {sound.id, slow.id, apart.id}
    assert await listed(benchmark_run=whole_run) == {sound.id, slow.id}
    assert await listed(scenario=sound.scenario_id) == {sound.id, apart.id}
    assert await listed(benchmark_run=whole_run, state="canceled") == {slow.id}
    assert await listed(scenario="scn_none") == set()


async def test_a_run_is_scored(subject: Subject) -> None:
    run = await subject.running("slow")
    assert (await subject.endpoint.score(run.id, key=fresh())).state == "scoring"
    scored = await subject.endpoint.wait_scored(run.id)
    assert (scored.id, scored.state, scored.score) == (run.id, "scored", 1.0)
    assert [(each.name, each.score, each.state) for each in scored.scorers] == [("tests", 1.0, "complete")]
    assert await subject.endpoint.run(run.id) == scored
    assert await subject.status(run) == "running"


async def test_a_run_with_a_broken_scorer_says_so(subject: Subject) -> None:
    run = await subject.running("broken")
    await subject.endpoint.score(run.id, key=fresh())
    ended = await subject.endpoint.wait_scored(run.id)
    assert ended.state in {"failed", "scored"}
    assert [each.state for each in ended.scorers] == ["error"]


async def test_a_failed_run_whose_devbox_lives_is_scored_again(subject: Subject) -> None:
    subject.need("scored")
    run = await subject.running("broken")
    for _ in range(2):
        if subject.script is not None:
            subject.script.broken_scorings = 1
        assert (await subject.endpoint.score(run.id, key=fresh())).state == "scoring"
        assert (await subject.endpoint.wait_scored(run.id)).state == "failed"


async def test_a_key_starts_one_scoring(subject: Subject) -> None:
    subject.need("keys")
    run, key = await subject.running("broken"), fresh()
    for _ in range(2):
        await subject.endpoint.score(run.id, key=key)
        ended = await subject.endpoint.wait_scored(run.id)
        assert ended.state == "failed"
        if subject.script is not None:
            subject.script.broken_scorings = 0
    assert await subject.endpoint.run(run.id) == ended
    assert [each.state for each in ended.scorers] == ["error"]


async def test_scoring_a_scored_run_again_starts_nothing(subject: Subject) -> None:
    run = await subject.scored()
    if "scored" in subject.promises:
        assert await subject.endpoint.score(run.id, key=fresh()) == run
    else:
        with pytest.raises(Conflicted):
            await subject.endpoint.score(run.id, key=fresh())
    assert await subject.endpoint.run(run.id) == run


async def test_a_running_run_is_completed_without_a_score(subject: Subject) -> None:
    run = await subject.running()
    await subject.endpoint.complete(run.id)
    ended = await subject.endpoint.run(run.id)
    assert (ended.state, ended.score) == ("completed", None)


async def test_a_benchmark_run_completes_by_itself_once_every_scenario_has_its_result(subject: Subject) -> None:
    whole_run = await subject.benchmark_run()
    for name in SCENARIOS:
        assert (await subject.endpoint.benchmark_run(whole_run)).state == "running"
        run = await subject.start(name, benchmark_run=whole_run)
        await subject.endpoint.complete(run.id)  # at once: one that cannot boot fails in the end, and has no result
    assert (await subject.endpoint.benchmark_run(whole_run)).state == "completed"


@pytest.mark.parametrize("end", ["complete", "cancel"])
async def test_a_run_that_has_ended_is_not_scored(subject: Subject, end: str) -> None:
    run = await subject.running()
    await getattr(subject.endpoint, end)(run.id)
    with pytest.raises(Conflicted):
        await subject.endpoint.score(run.id, key=fresh())


async def test_a_run_whose_devbox_has_ended_is_not_scored(subject: Subject) -> None:
    run = await subject.running()
    await subject.endpoint.shutdown(run.devbox_id)
    await settled(partial(subject.state, run), "failed")
    with pytest.raises(Conflicted):
        await subject.endpoint.score(run.id, key=fresh())


async def test_waiting_for_the_score_of_a_run_that_is_not_scoring_returns_at_once(subject: Subject) -> None:
    run = await subject.start()
    with anyio.fail_after(10):
        assert (await subject.endpoint.wait_scored(run.id)).state == "running"


async def test_completing_a_scored_run_ends_its_devbox(subject: Subject) -> None:
    run = await subject.scored()
    await subject.endpoint.complete(run.id)
    ended = await subject.endpoint.run(run.id)
    assert (ended.state, ended.score) == ("completed", 1.0)
    await settled(partial(subject.status, run), "shutdown")


async def test_canceling_a_run_ends_its_devbox(subject: Subject) -> None:
    run = await subject.running()
    await subject.endpoint.cancel(run.id)
    assert await subject.state(run) == "canceled"
    await settled(partial(subject.status, run), "shutdown")


async def test_a_run_that_is_scoring_can_be_canceled_and_not_completed(subject: Subject) -> None:
    run = await subject.running("slow")
    await subject.endpoint.score(run.id, key=fresh())
    with pytest.raises(Conflicted):
        await subject.endpoint.complete(run.id)
    assert await subject.state(run) == "scoring"
    await subject.endpoint.cancel(run.id)
    assert (await subject.endpoint.wait_scored(run.id)).state == "canceled"


@pytest.mark.parametrize(("end", "state"), [("complete", "completed"), ("cancel", "canceled")])
async def test_a_run_ends_once(subject: Subject, end: str, state: str) -> None:
    run = await subject.scored()
    for verb in (end, "complete", "cancel"):
        await getattr(subject.endpoint, verb)(run.id)
        assert await subject.state(run) == state


async def test_the_agents_begin_and_end_are_noted_by_endpoints_that_settle(subject: Subject) -> None:
    assert SETTLEMENTS not in await subject.endpoint.features()
    run = await subject.running()
    assert await subject.endpoint.agent_begins(run.id) is False
    assert await subject.endpoint.agent_ended(run.id, scoring="declared") is None


# Devboxes


async def test_a_devbox_boots_and_is_listed_until_it_ends(subject: Subject) -> None:
    run = await subject.start()

    async def listed() -> bool:
        return run.devbox_id in {devbox.id for devbox in await subject.endpoint.list_devboxes()}

    assert await subject.status(run) in DEVBOX_ALIVE
    assert await listed()
    devbox = await subject.endpoint.wait_running(run.devbox_id)
    assert (devbox.id, devbox.status) == (run.devbox_id, "running")
    assert devbox.home.startswith("/")
    assert await subject.endpoint.wait_running(run.devbox_id) == devbox
    for _ in range(2):
        await subject.endpoint.shutdown(run.devbox_id)
    assert not await listed()
    assert await subject.status(run) == "shutdown"


async def test_a_devbox_that_never_runs_is_a_failure_and_fails_its_run(subject: Subject) -> None:
    run = await subject.start("unbootable")
    with pytest.raises(DevboxFailed, match=run.devbox_id):
        await subject.endpoint.wait_running(run.devbox_id)
    assert await subject.status(run) == "failure"
    assert await subject.state(run) == "failed"


async def test_a_devbox_that_has_ended_never_runs(subject: Subject) -> None:
    run = await subject.running()
    await subject.endpoint.shutdown(run.devbox_id)
    with pytest.raises(DevboxFailed):
        await subject.endpoint.wait_running(run.devbox_id)


async def test_a_devbox_ends_by_itself_after_its_keep_alive(subject: Subject) -> None:
    subject.need("keep_alive")
    run = await subject.start(keep_alive=1)
    await settled(partial(subject.status, run), "shutdown")
    await settled(partial(subject.state, run), "timeout")


async def test_a_run_ends_with_its_devbox_unless_it_has_its_score(subject: Subject) -> None:
    running, scored = await subject.running(), await subject.scored()
    for run in (running, scored):
        await subject.endpoint.shutdown(run.devbox_id)
    await settled(partial(subject.state, running), "failed")
    assert await subject.state(scored) == "scored"


async def test_a_devbox_has_a_log(subject: Subject) -> None:
    run = await subject.running()
    await subject.endpoint.wait_completed(run.devbox_id, (await subject.execute(run.devbox_id, prints="said\n")).id)
    assert (await subject.endpoint.devbox_log(run.devbox_id)).endswith("\n")


# Executions and files


@pytest.mark.parametrize("status", [0, 3])
async def test_a_command_ends_with_its_exit_status_and_stays_ended(subject: Subject, status: int) -> None:
    run = await subject.running()
    started = await subject.execute(run.devbox_id, takes=0.1, ends_with=status)
    assert (started.devbox_id, started.is_completed, started.exit_status) == (run.devbox_id, False, None)
    with anyio.fail_after(10):
        for _ in range(2):
            ended = await subject.endpoint.wait_completed(run.devbox_id, started.id)
            assert (ended.id, ended.is_completed, ended.exit_status) == (started.id, True, status)
            if subject.script is not None:
                subject.script.solve = 3600.0


async def test_a_key_starts_one_command(subject: Subject) -> None:
    subject.need("keys")
    run, key = await subject.running(), fresh()
    first, second = [await subject.execute(run.devbox_id, key=key) for _ in range(2)]
    assert first.id == second.id != (await subject.execute(run.devbox_id)).id


async def test_output_is_read_from_any_byte_on(subject: Subject) -> None:
    run, text = await subject.running(), "größer\nthan ascii\n"
    execution = await subject.execute(run.devbox_id, prints=text)
    await subject.endpoint.wait_completed(run.devbox_id, execution.id)

    async def read(offset: int) -> tuple[str, int]:
        said, at = "", offset
        async for piece, behind in subject.endpoint.output(run.devbox_id, execution.id, offset):
            said, at = said + piece, behind
        return said, at

    size = len(text.encode())
    assert await read(0) == (text, size)
    behind = len("größ".encode())
    assert await read(behind) == ("er\nthan ascii\n", size)
    assert await read(size) == ("", size)


async def test_output_comes_while_the_command_still_runs(subject: Subject) -> None:
    run = await subject.running()
    execution = await subject.execute(run.devbox_id, prints="soon\n", takes=3600.0)
    with anyio.fail_after(20):
        async with aclosing(subject.endpoint.output(run.devbox_id, execution.id)) as pieces:
            assert await anext(pieces) == ("soon\n", 5)
    await subject.endpoint.kill(run.devbox_id, execution.id)


async def test_a_killed_command_ends_at_once_and_with_no_good_status(subject: Subject) -> None:
    run = await subject.running()
    execution = await subject.execute(run.devbox_id, takes=3600.0)
    ends: list[Execution] = []

    async def wait() -> None:
        ends.append(await subject.endpoint.wait_completed(run.devbox_id, execution.id))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(0.1)
            for _ in range(2):
                await subject.endpoint.kill(run.devbox_id, execution.id)
    assert ends[0].exit_status not in {None, 0}


async def test_a_command_is_lost_with_its_devbox(subject: Subject) -> None:
    run = await subject.running()
    execution = await subject.execute(run.devbox_id, takes=3600.0)

    async def end() -> None:
        await anyio.sleep(0.1)
        await subject.endpoint.shutdown(run.devbox_id)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end)
            with pytest.raises(DevboxLost):
                await subject.endpoint.wait_completed(run.devbox_id, execution.id)


async def test_a_command_that_ended_before_its_devbox_keeps_its_end_and_its_output(subject: Subject) -> None:
    run = await subject.running()
    execution = await subject.execute(run.devbox_id, prints="said\n", ends_with=3)
    await subject.endpoint.wait_completed(run.devbox_id, execution.id)
    await subject.endpoint.shutdown(run.devbox_id)
    assert (await subject.endpoint.wait_completed(run.devbox_id, execution.id)).exit_status == 3
    await subject.endpoint.kill(run.devbox_id, execution.id)
    pieces = [piece async for piece, _ in subject.endpoint.output(run.devbox_id, execution.id)]
    assert "".join(pieces) == "said\n"


async def test_files_are_written_read_and_overwritten(subject: Subject) -> None:
    run = await subject.running()
    home = (await subject.endpoint.devbox(run.devbox_id)).home
    path, large = f"{home}/new/folder/file", bytes(range(256)) * 2000
    for data in (large, b"", b"short"):
        await subject.endpoint.write_file(run.devbox_id, path, data)
        assert await whole(subject.endpoint.read_file(run.devbox_id, path), path, len(large)) == data


async def test_who_reads_a_file_may_stop_at_any_piece(subject: Subject) -> None:
    run = await subject.running()
    path, data = f"{(await subject.endpoint.devbox(run.devbox_id)).home}/large", bytes(range(256)) * 20_000
    await subject.endpoint.write_file(run.devbox_id, path, data)
    for _ in range(3):
        async with aclosing(subject.endpoint.read_file(run.devbox_id, path)) as pieces:
            first = await anext(pieces)
            assert first == data[: len(first)] != b""
    assert await whole(subject.endpoint.read_file(run.devbox_id, path), path, len(data)) == data


async def test_a_file_that_is_not_there_is_no_lost_devbox(subject: Subject) -> None:
    run = await subject.running()
    with pytest.raises((Missing, Conflicted)):
        await whole(subject.endpoint.read_file(run.devbox_id, "/no/such/file"), "a file", 1)


@pytest.mark.parametrize("call", ["execute", "write_file", "read_file", "wait_completed", "kill"])
async def test_in_a_devbox_that_has_ended_nothing_can_be_done(subject: Subject, call: str) -> None:
    run = await subject.running()
    await subject.endpoint.shutdown(run.devbox_id)
    with pytest.raises(DevboxLost):
        await in_devbox(subject.endpoint, call, run.devbox_id)


@pytest.mark.parametrize("call", ["execute", "write_file", "read_file", "wait_completed", "kill"])
async def test_in_a_devbox_that_nobody_knows_nothing_can_be_done(subject: Subject, call: str) -> None:
    with pytest.raises(DevboxLost):
        await in_devbox(subject.endpoint, call, "dbx_none")


@pytest.mark.parametrize("call", ["wait_completed", "kill", "output"])
async def test_an_unknown_execution_is_missing(subject: Subject, call: str) -> None:
    run = await subject.running()
    with anyio.fail_after(20), pytest.raises(Missing):
        await in_devbox(subject.endpoint, call, run.devbox_id)


async def in_devbox(endpoint: Endpoint, call: str, devbox: str) -> None:
    """Make a call about an execution or a file that does not exist."""
    match call:
        case "execute":
            await endpoint.execute(devbox, "true", key=fresh())
        case "write_file":
            await endpoint.write_file(devbox, "/tmp/file", b"data")
        case "read_file":
            await whole(endpoint.read_file(devbox, "/no/such/file"), "a file", 1)
        case "output":
            _ = [piece async for piece in endpoint.output(devbox, "exec_none")]
        case _:
            await getattr(endpoint, call)(devbox, "exec_none")


# The rest


@pytest.mark.parametrize(
    ("call", "identity"),
    [
        ("scenario", "scn_none"),
        ("benchmark_run", "bmr_none"),
        ("complete_benchmark_run", "bmr_none"),
        ("cancel_benchmark_run", "bmr_none"),
        ("run", "scr_none"),
        ("wait_scored", "scr_none"),
        ("complete", "scr_none"),
        ("cancel", "scr_none"),
        ("devbox", "dbx_none"),
        ("wait_running", "dbx_none"),
        ("devbox_log", "dbx_none"),
    ],
)
async def test_an_unknown_id_is_missing(subject: Subject, call: str, identity: str) -> None:
    with anyio.fail_after(20), pytest.raises(Missing):
        await getattr(subject.endpoint, call)(identity)


async def test_unknown_ids_are_missing_to_those_who_start_something(subject: Subject) -> None:
    endpoint = subject.endpoint
    start = partial(
        endpoint.start_run, name="n", metadata={}, keep_alive=60, needs=Needs(), key=fresh(), benchmark_run_id=None
    )
    with pytest.raises(Missing):
        await start("scn_none")
    with pytest.raises(Missing):
        await start(subject.benchmark.scenario_ids[0], benchmark_run_id="bmr_none")
    with pytest.raises(Missing):
        await endpoint.start_benchmark_run("bmd_none", name="n", metadata={}, key=fresh())
    with pytest.raises(Missing):
        await endpoint.score("scr_none", key=fresh())
    with pytest.raises(Missing):
        await endpoint.summaries(Benchmark(id="bmd_none", name="none", scenario_ids=()))


async def test_ending_an_unknown_devbox_does_nothing(subject: Subject) -> None:
    await subject.endpoint.shutdown("dbx_none")


async def test_an_endpoint_notes_when_it_answered(subject: Subject) -> None:
    before = anyio.current_time()
    await subject.endpoint.ping()
    assert subject.endpoint.answered_at >= before


async def test_clients_learn_of_each_other_where_the_endpoint_knows(subject: Subject) -> None:
    at_work, sweep = subject.endpoint.at_work, fresh()
    assert await at_work(sweep, "first") == []
    others = await at_work(sweep, "second")
    assert others in ([], ["first"])
    if others:
        assert await at_work("another sweep", "third") == []
        await subject.endpoint.leave("first")
        assert await at_work(sweep, "second") == []


async def test_needs_of_nothing_are_met(subject: Subject) -> None:
    await subject.endpoint.check(Needs())
    assert all(isinstance(notice, str) for notice in await subject.endpoint.notices(is_online=True))
