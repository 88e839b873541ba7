"""The engine's outside world in memory, for its tests and those of the layers above: an endpoint, and a journal.

The endpoint keeps real states and answers an illegal call as a service does: `tests/endpoint/test_conformance.py`
holds both to the same claims. Durations and failures come from a script. Time passes where it is waited for: a devbox
boots in `wait_running`, a command runs in `wait_completed`, a run is scored in `wait_scored`.
"""

import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import anyio
from msgspec import structs

from orchestrator.core import errors, events, records
from orchestrator.core.ledger import Ledger
from orchestrator.core.protocol import DEVBOX_ALIVE, DEVBOX_DEAD, RUN_ALIVE, RUN_RESULT
from orchestrator.endpoint.protocols import NO_VARIABLES

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Script:
    """Behaviour of an endpoint. Times are seconds; `faults` are raised by the named call, one a call, in order."""

    #: Seconds for which devboxes wait for an image before they boot.
    preparing: float = 0.0
    boot: float = 10.0
    solve: float = 60.0
    #: Arms whose agents take another time.
    solve_for: dict[str, float] = field(default_factory=dict)
    scoring: float = 5.0
    score: float = 1.0
    exit_status: int = 0
    #: Number of ends of agents that leave no record in their devbox.
    unrecorded: int = 0
    output: str = "done\n"
    faults: dict[str, list[errors.WorldError]] = field(default_factory=dict)
    #: Calls that take longer than others.
    slow: dict[str, float] = field(default_factory=dict)
    #: Numbers of scorings that end with a scorer in error before one does not, and that ask no scorer before those.
    broken_scorings: int = 0
    unheard_scorings: int = 0
    #: Devboxes that never boot, and devboxes that die while the agent works: so many of the first.
    failing_boots: int = 0
    dying_devboxes: int = 0
    #: A repeated call has its effect again, as on an endpoint that keeps no idempotency keys.
    is_forgetful: bool = False
    #: Digests of scenarios that have changed, by their ids.
    digests: dict[str, str] = field(default_factory=dict)


#: The scripts of `DevboxWorkspace.tend`: none takes time here, or fails.
HOUSEKEEPING: Final = ("/.sweep/snapshot.sh", "/.sweep/patch.sh", "/.sweep/gather.sh")
#: The only piece of an agent's patch: it changes nothing.
PATCH: Final = "patch.aaa"
BENCHMARK: Final = "bmd_1"
#: The exit status of a command that was killed.
KILLED: Final = 137
#: The wrapper's folder, in the command that starts an agent.
_WRAPPER: Final = re.compile(r"^bash (\S+/agent)/run ", re.MULTILINE)


class MemoryEndpoint:
    """Implements `endpoint.protocols.Endpoint` in memory."""

    url = "memory:"
    token = ""

    def __init__(self, scenarios: Sequence[records.ScenarioSummary], script: Script | None = None) -> None:
        self.script = script or Script()
        self.rate: float | None = None
        self.summaries_ = list(scenarios)
        self.runs: dict[str, records.ScenarioRun] = {}
        self.benchmark_runs: dict[str, records.BenchmarkRun] = {}
        self.devboxes: dict[str, records.Devbox] = {}
        #: The commands by the ids of their executions, and the executions that have ended.
        self.executions: dict[str, str] = {}
        self._ended: dict[str, records.Execution] = {}
        #: The environments that were to be prepared before they were needed, in this order.
        self.prepared: list[str] = []
        self.files: dict[tuple[str, str], bytes] = {}
        self.calls: Counter[str] = Counter()
        self.most_alive = 0
        #: It is unreachable: every call fails and has no effect.
        self.is_gone = False
        self._answered_at = 0.0
        #: The sweep that each client is at work on.
        self.clients: dict[str, str] = {}
        self._answers: dict[str, Any] = {}
        #: Set when a command is killed or its devbox ends, by devbox and execution.
        self._stops: list[tuple[str, str, anyio.Event]] = []

    @property
    def answered_at(self) -> float:
        self._answered_at = self._answered_at if self.is_gone else anyio.current_time()
        return self._answered_at

    def limit_rate(self, rate: float) -> None:
        self.rate = rate

    async def ping(self) -> None:
        await self._call("ping")

    @property
    def alive(self) -> int:
        """The number of devboxes that have not ended."""
        return sum(devbox.status in {"provisioning", "running"} for devbox in self.devboxes.values())

    async def features(self) -> frozenset[str]:
        return frozenset()

    async def prepare(self, environments: Sequence[str], *, is_begun: bool = False) -> Sequence[records.Preparation]:
        await self._call("prepare")
        self.prepared += [] if is_begun else environments
        return [records.Preparation(environment=each, state="ready") for each in environments]

    async def room_for(self, environments: Sequence[str]) -> records.RoomEstimate:
        return records.RoomEstimate(images=len(environments), unknown=len(environments))

    async def at_work(self, sweep: str, client: str) -> list[str]:
        await self._call("at_work")
        self.clients[client] = sweep
        return [name for name, its in self.clients.items() if its == sweep and name != client]

    async def leave(self, client: str) -> None:
        self.clients.pop(client, None)

    async def notices(self, *, is_online: bool) -> Sequence[str]:  # noqa: ARG002 - it says nothing
        return ()

    async def secret_names(self) -> frozenset[str]:
        return frozenset()

    async def check(self, needs: records.Needs) -> None:
        """Everything is available here."""

    async def benchmarks(self) -> list[records.Benchmark]:
        return [records.Benchmark(id=BENCHMARK, name="memory", scenario_ids=tuple(each.id for each in self.summaries_))]

    async def summaries(
        self,
        benchmark: records.Benchmark,
        at_most: int | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> list[records.ScenarioSummary]:
        del include, exclude
        if benchmark.id != BENCHMARK:
            raise errors.Missing(f"there is no {benchmark.id}")
        return self.summaries_[:at_most]

    async def scenario(self, scenario_id: str) -> records.Scenario:
        await self._call("scenario")
        self._check_scenario(scenario_id)
        digest = self.script.digests.get(scenario_id, "")
        return records.Scenario(
            id=scenario_id, name=scenario_id, prompt=f"Solve {scenario_id}.", digest=digest, reference_output="true"
        )

    async def start_benchmark_run(
        self, benchmark_id: str, *, name: str, metadata: Mapping[str, str], key: str
    ) -> records.BenchmarkRun:
        await self._call("start_benchmark_run")
        if benchmark_id != BENCHMARK:
            raise errors.Missing(f"there is no {benchmark_id}")
        identity = self._answers.setdefault(self._known(key), f"bmr_{len(self.benchmark_runs) + 1}")
        new = records.BenchmarkRun(
            id=identity, benchmark_id=benchmark_id, state="running", name=name, metadata=metadata
        )
        return self.benchmark_runs.setdefault(identity, new)

    async def benchmark_run(self, run_id: str) -> records.BenchmarkRun:
        await self._call("benchmark_run")
        return _found(self.benchmark_runs, run_id)

    async def list_benchmark_runs(
        self, *, benchmark: str | None = None, state: str | None = None
    ) -> list[records.BenchmarkRun]:
        await self._call("list_benchmark_runs")
        return [
            run
            for run in self.benchmark_runs.values()
            if benchmark in {None, run.benchmark_id} and state in {None, run.state}
        ]

    async def complete_benchmark_run(self, run_id: str) -> None:
        await self._call("complete_benchmark_run")
        self._end_benchmark_run(run_id, "completed")

    async def cancel_benchmark_run(self, run_id: str) -> None:
        await self._call("cancel_benchmark_run")
        self._end_benchmark_run(run_id, "canceled")

    def _end_benchmark_run(self, run_id: str, state: str) -> None:
        run = _found(self.benchmark_runs, run_id)
        if run.state != "running":
            return
        self.benchmark_runs[run_id] = replace(run, state=state)
        for each in list(self.runs.values()):
            if each.benchmark_run_id == run_id and each.state in RUN_ALIVE:
                self._end(each, "completed" if each.state == "scored" else "canceled")

    async def start_run(
        self,
        scenario_id: str,
        *,
        benchmark_run_id: str | None,
        name: str,
        metadata: Mapping[str, str],
        keep_alive: int,
        needs: records.Needs,
        key: str,
        variables: Mapping[str, str] = NO_VARIABLES,
    ) -> records.ScenarioRun:
        del name, keep_alive, needs, variables
        await self._call("start_run")
        if self._known(key) in self._answers:
            return self.runs[self._answers[key]]
        self._check_scenario(scenario_id)
        if benchmark_run_id is not None and _found(self.benchmark_runs, benchmark_run_id).state != "running":
            raise errors.Conflicted(f"{benchmark_run_id} is {self.benchmark_runs[benchmark_run_id].state}")
        number = len(self.runs) + 1
        self.devboxes[f"dbx_{number}"] = records.Devbox(id=f"dbx_{number}", status="provisioning", metadata=metadata)
        run = records.ScenarioRun(
            id=f"scr_{number}",
            scenario_id=scenario_id,
            devbox_id=f"dbx_{number}",
            state="running",
            benchmark_run_id=benchmark_run_id,
            metadata=metadata,
        )
        self._answers[self._known(key)] = run.id
        self.runs[run.id] = run
        self.most_alive = max(self.most_alive, self.alive)
        return run

    async def run(self, run_id: str) -> records.ScenarioRun:
        await self._call("run")
        return _found(self.runs, run_id)

    async def list_runs(
        self, *, benchmark_run: str | None = None, scenario: str | None = None, state: str | None = None
    ) -> list[records.ScenarioRun]:
        await self._call("list_runs")
        return [
            run
            for run in self.runs.values()
            if benchmark_run in {None, run.benchmark_run_id}
            and scenario in {None, run.scenario_id}
            and state in {None, run.state}
        ]

    async def agent_begins(self, run_id: str) -> bool:
        del run_id
        await self._call("agent_begins")
        return False

    async def agent_ended(
        self,
        run_id: str,
        *,
        scoring: str,
        devbox: str | None = None,
        execution: str | None = None,
        kept: str | None = None,
    ) -> records.Settlement | None:
        del run_id, scoring, devbox, execution, kept
        await self._call("agent_ended")
        return None

    async def score(self, run_id: str, *, key: str) -> records.ScenarioRun:
        await self._call("score")
        run = _found(self.runs, run_id)
        known = self._known(key)
        if known in self._answers or (run.state in {"scoring", "scored"} and not self.script.is_forgetful):
            return run
        if run.state not in {"running", "failed"} or self.devboxes[run.devbox_id].status != "running":
            raise errors.Conflicted(f"run {run_id} is {run.state}: it cannot be scored")
        self.runs[run_id] = replace(run, state="scoring", score=None, scorers=(), judgement=None)
        self._answers[known] = run_id
        return self.runs[run_id]

    async def wait_scored(self, run_id: str) -> records.ScenarioRun:
        await self._call("wait_scored")
        if _found(self.runs, run_id).state == "scoring":
            await anyio.sleep(self.script.scoring)
        run = self.runs[run_id]
        if run.state != "scoring":
            return run
        if self.script.unheard_scorings > 0:
            self.script.unheard_scorings -= 1
            self.runs[run_id] = replace(run, state="failed")
            return self.runs[run_id]
        is_broken = self.script.broken_scorings > 0
        self.script.broken_scorings -= is_broken
        scorer = records.ScorerResult(
            name="tests", score=0.0 if is_broken else self.script.score, state="error" if is_broken else "complete"
        )
        self.runs[run_id] = replace(
            run,
            state="failed" if is_broken else "scored",
            score=scorer.score,
            scorers=(scorer,),
            judgement=records.Judgement(mode="shared"),
        )
        self._settle(run.benchmark_run_id)
        return self.runs[run_id]

    async def complete(self, run_id: str) -> None:
        await self._call("complete")
        run = _found(self.runs, run_id)
        if run.state == "scoring":
            raise errors.Conflicted(f"run {run_id} is scoring: it cannot be completed")
        if run.state in RUN_ALIVE:
            self._end(run, "completed")
            self._settle(run.benchmark_run_id)

    async def cancel(self, run_id: str) -> None:
        await self._call("cancel")
        run = _found(self.runs, run_id)
        if run.state in RUN_ALIVE:
            self._end(run, "canceled")
        elif run.state == "failed":
            self._end(run, "failed")

    async def wait_running(
        self,
        devbox_id: str,
        *,
        preparing: Callable[[str], None] = lambda _: None,
    ) -> records.Devbox:
        await self._call("wait_running")
        ready_at = anyio.current_time() + self.script.preparing
        while anyio.current_time() < ready_at:
            preparing("pulling an image")
            await anyio.sleep(20)
        if _found(self.devboxes, devbox_id).status == "provisioning":
            await anyio.sleep(self.script.boot)
        if self.devboxes[devbox_id].status == "provisioning":
            is_failing = self.script.failing_boots > 0
            self.script.failing_boots -= is_failing
            self._set(devbox_id, "failure" if is_failing else "running")
        devbox = self.devboxes[devbox_id]
        if devbox.status in DEVBOX_DEAD:
            raise errors.DevboxFailed(f"devbox {devbox_id} never ran: {devbox.status}")
        return devbox

    async def devbox(self, devbox_id: str) -> records.Devbox:
        await self._call("devbox")
        return _found(self.devboxes, devbox_id)

    async def list_devboxes(self) -> list[records.Devbox]:
        await self._call("list_devboxes")
        return [devbox for devbox in self.devboxes.values() if devbox.status in DEVBOX_ALIVE]

    async def shutdown(self, devbox_id: str) -> None:
        await self._call("shutdown")
        if devbox_id in self.devboxes:
            self._set(devbox_id, "shutdown")

    async def devbox_log(self, devbox_id: str) -> str:
        await self._call("devbox_log")
        return f"log of {_found(self.devboxes, devbox_id).id}\n"

    async def execute(self, devbox_id: str, command: str, *, key: str) -> records.Execution:
        if command.endswith(HOUSEKEEPING):
            self._check_running(devbox_id)
            return records.Execution(id=command, devbox_id=devbox_id, is_completed=False)
        await self._call("execute")
        self._check_running(devbox_id)
        identity = self._answers.setdefault(self._known(key), f"exec_{len(self.executions) + 1}")
        self.executions.setdefault(identity, command)
        return records.Execution(id=identity, devbox_id=devbox_id, is_completed=False)

    async def wait_completed(self, devbox_id: str, execution_id: str) -> records.Execution:
        if execution_id.endswith(HOUSEKEEPING):
            told = f"piece {PATCH}\n" if execution_id.endswith("/patch.sh") else ""
            return records.Execution(
                id=execution_id, devbox_id=devbox_id, is_completed=True, exit_status=0, stdout=told
            )
        await self._call("wait_completed")
        if execution_id in self._ended:
            return self._ended[execution_id]
        self._check_running(devbox_id)
        command = _found(self.executions, execution_id)
        trial = self.devboxes[devbox_id].metadata.get("trial", "")
        slow = [seconds for arm, seconds in self.script.solve_for.items() if f"/{arm}/" in trial]
        solve = slow[0] if slow else self.script.solve
        stop = (devbox_id, execution_id, anyio.Event())
        self._stops.append(stop)
        try:
            if self.script.dying_devboxes > 0:
                self.script.dying_devboxes -= 1
                await anyio.sleep(solve / 2)
                self._set(devbox_id, "failure")
            with anyio.move_on_after(solve):
                await stop[2].wait()
        finally:
            self._stops.remove(stop)
        if execution_id in self._ended:
            return self._ended[execution_id]
        self._check_running(devbox_id)
        wrapper = _WRAPPER.search(command)
        if wrapper and self.script.unrecorded > 0:
            self.script.unrecorded -= 1
        elif wrapper:
            self.files[devbox_id, f"{wrapper[1]}/status"] = f"{self.script.exit_status}\n".encode()
        return self._end_execution(devbox_id, execution_id, self.script.exit_status)

    async def output(self, devbox_id: str, execution_id: str, offset: int = 0) -> AsyncGenerator[tuple[str, int], None]:
        del devbox_id
        await self._call("output")
        _found(self.executions, execution_id)
        data = self.script.output.encode()
        if offset < len(data):
            yield data[offset:].decode(errors="replace"), len(data)

    async def kill(self, devbox_id: str, execution_id: str) -> None:
        await self._call("kill")
        if execution_id not in self._ended:
            self._check_running(devbox_id)
            _found(self.executions, execution_id)
            self._end_execution(devbox_id, execution_id, KILLED)
            self._stop(devbox_id, execution_id)

    async def read_file(self, devbox_id: str, path: str) -> AsyncGenerator[bytes, None]:
        if path.endswith(f"/{PATCH}"):
            yield b""
            return
        await self._call("read_file")
        self._check_running(devbox_id)
        yield _found(self.files, (devbox_id, path))

    async def write_file(self, devbox_id: str, path: str, data: bytes) -> None:
        if not path.endswith(HOUSEKEEPING):
            await self._call("write_file")
        self._check_running(devbox_id)
        self.files[devbox_id, path] = data

    def _known(self, key: str) -> str:
        """Return the idempotency key as this endpoint keeps it: a forgetful one takes each call for a new one."""
        return f"{key} {sum(self.calls.values())}" if self.script.is_forgetful else key

    async def _call(self, name: str) -> None:
        if self.is_gone:
            raise errors.Unavailable("nobody answers")
        self.calls[name] += 1
        await anyio.sleep(self.script.slow.get(name, 0.01))
        faults = self.script.faults.get(name)
        if faults:
            raise faults.pop(0)

    def _check_scenario(self, scenario_id: str) -> None:
        if all(summary.id != scenario_id for summary in self.summaries_):
            raise errors.Missing(f"there is no {scenario_id}")

    def _check_running(self, devbox_id: str) -> None:
        if devbox_id not in self.devboxes:
            raise errors.DevboxLost(f"there is no {devbox_id}")
        if self.devboxes[devbox_id].status != "running":
            raise errors.DevboxLost(f"devbox {devbox_id} is {self.devboxes[devbox_id].status}")

    def _end(self, run: records.ScenarioRun, state: str) -> None:
        self.runs[run.id] = replace(run, state=state)
        self._set(run.devbox_id, "shutdown")

    def _settle(self, benchmark_run_id: str | None) -> None:
        """Complete a benchmark run of which every scenario has its result."""
        whole = self.benchmark_runs.get(benchmark_run_id or "")
        runs = [run for run in self.runs.values() if run.benchmark_run_id == benchmark_run_id]
        done = {run.scenario_id for run in runs if run.state in RUN_RESULT}
        if whole is not None and whole.state == "running" and {each.id for each in self.summaries_} <= done:
            self.benchmark_runs[whole.id] = replace(whole, state="completed")

    def _set(self, devbox_id: str, status: str) -> None:
        """Set a devbox's status unless it has ended. Its end ends its commands, and its run if that is not scored."""
        if self.devboxes[devbox_id].status in DEVBOX_DEAD:
            return
        self.devboxes[devbox_id] = replace(self.devboxes[devbox_id], status=status)
        if status in DEVBOX_DEAD:
            self._stop(devbox_id)
            for run in list(self.runs.values()):
                if run.devbox_id == devbox_id and run.state in {"running", "scoring"}:
                    self.runs[run.id] = replace(run, state="failed")

    def _stop(self, devbox_id: str, execution_id: str | None = None) -> None:
        """Wake the waits for a command in a devbox, or for all of its commands."""
        for devbox, execution, event in self._stops:
            if devbox == devbox_id and execution_id in {None, execution}:
                event.set()

    def _end_execution(self, devbox_id: str, execution_id: str, status: int) -> records.Execution:
        ended = records.Execution(id=execution_id, devbox_id=devbox_id, is_completed=True, exit_status=status)
        return self._ended.setdefault(execution_id, ended)


def _found(things: Mapping[Any, T], identity: Any) -> T:
    if identity not in things:
        raise errors.Missing(f"there is no {identity}")
    return things[identity]


class MemorySink:
    """Implements `core.events.Sink` without a disk: events are in the ledger at once, at the loop's time.

    `sync` gives the seconds of the next sync. `append` waits as long as with a disk whose syncs take that long: for the
    sync under way and the next one, which all events that came meanwhile share.
    """

    def __init__(self, ledger: Ledger, sync: Callable[[], float] = lambda: 0.0) -> None:
        self.ledger = ledger
        self.events: list[events.Event] = []
        self._sync = sync
        #: The loop's time at which the sync under way ends, and the one that follows it; the same if none does.
        self._ends_at = self._following_ends_at = float("-inf")

    async def append(self, *batch: events.Event) -> None:
        self.append_nowait(*batch)
        now = anyio.current_time()
        if now >= self._following_ends_at:
            self._ends_at = self._following_ends_at = now + self._sync()
        elif now >= self._ends_at or self._ends_at == self._following_ends_at:
            self._ends_at = self._following_ends_at
            self._following_ends_at += self._sync()
        await anyio.sleep_until(self._following_ends_at)

    def append_nowait(self, *batch: events.Event) -> None:
        for each in batch:
            event = structs.replace(each, at=anyio.current_time())
            self.events.append(event)
            self.ledger.apply(event)

    async def wait_writable(self) -> None:
        """Return at once: memory never refuses."""
