"""What tests of the engine need, for us and for whoever extends it: a clock that jumps, an endpoint in memory, a sink.

The endpoint keeps real run states, so that an illegal call fails as it would on a service; how long things take and
what goes wrong is a script. With the virtual clock an hour of it takes milliseconds; what goes to a thread is done
at once. Code with processes needs the real clock: this one does not wait for them.
"""

import asyncio
import re
import selectors
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar
from unittest.mock import patch

import anyio
from msgspec import structs

from orchestrator.core.errors import Conflicted, DevboxFailed, DevboxLost, Missing, Unavailable, WorldError
from orchestrator.core.events import Event
from orchestrator.core.ledger import Ledger
from orchestrator.core.protocol import DEVBOX_ALIVE, RUN_ALIVE
from orchestrator.core.records import (
    Benchmark,
    BenchmarkRun,
    Devbox,
    Execution,
    Judgement,
    Needs,
    Scenario,
    ScenarioRun,
    ScenarioSummary,
    ScorerResult,
    Settlement,
)

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: moves the clock to where the loop wanted to wait for.

    Each poll creeps by a microsecond, because a clock that stands still livelocks with code that waits for it to move.
    """

    CREEP: Final = 1e-6

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("every task waits for something that will never happen")
            self.now += max(0.0, timeout)
        self.now += self.CREEP
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time. Starts at 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


async def _at_once(function: Callable[..., T], *args: object, **options: object) -> T:
    """Stands in for `anyio.to_thread.run_sync`: a thread takes time, of which a virtual clock knows nothing."""
    del options
    return function(*args)


def run_virtually(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a virtual clock. Raises RuntimeError when it would wait for ever."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner, patch("anyio.to_thread.run_sync", _at_once):
        return runner.run(main())


class MemorySink:
    """A journal without a disk: events are in the ledger at once, at the loop's time.

    Who waits for one waits as long as a disk whose syncs take so many seconds needs: for the sync under way and the
    next, which all share that came meanwhile.
    """

    def __init__(self, ledger: Ledger, sync: Callable[[], float] = lambda: 0.0) -> None:
        self.ledger = ledger
        self.events: list[Event] = []
        self._sync = sync
        #: The loop's time at which the sync under way ends, and the one that follows it; the same if none does.
        self._ends_at = self._following_ends_at = float("-inf")

    async def append(self, *batch: Event) -> None:
        self.append_nowait(*batch)
        now = anyio.current_time()
        if now >= self._following_ends_at:
            self._ends_at = self._following_ends_at = now + self._sync()
        elif now >= self._ends_at or self._ends_at == self._following_ends_at:
            self._ends_at = self._following_ends_at
            self._following_ends_at += self._sync()
        await anyio.sleep_until(self._following_ends_at)

    def append_nowait(self, *batch: Event) -> None:
        for each in batch:
            event = structs.replace(each, at=anyio.current_time())
            self.events.append(event)
            self.ledger.apply(event)

    async def wait_writable(self) -> None:
        """Memory never refuses."""


@dataclass(slots=True, kw_only=True)
class Script:
    """How an endpoint behaves. Times are seconds; `faults` are raised by the named call, one a call, in order."""

    boot: float = 10.0
    solve: float = 60.0
    #: Arms whose agents take another time.
    solve_for: dict[str, float] = field(default_factory=dict)
    scoring: float = 5.0
    score: float = 1.0
    exit_status: int = 0
    #: How many ends of agents leave no record in their devbox.
    unrecorded: int = 0
    output: str = "done\n"
    faults: dict[str, list[WorldError]] = field(default_factory=dict)
    #: Calls that take longer than others.
    slow: dict[str, float] = field(default_factory=dict)
    #: How many scorings end with a scorer in error before one does not, and how many before that ask no scorer at all.
    broken_scorings: int = 0
    unheard_scorings: int = 0
    #: Devboxes that never boot, and devboxes that die while the agent works: so many of the first.
    failing_boots: int = 0
    dying_devboxes: int = 0
    #: Whether a repeated call has its effect again, as on an endpoint that keeps no idempotency keys.
    is_forgetful: bool = False
    #: What scenarios have by now, by their ids.
    digests: dict[str, str] = field(default_factory=dict)


#: What `DevboxWorkspace.tend` runs: nothing of it takes time here, or goes wrong.
HOUSEKEEPING: Final = ("/.sweep/snapshot.sh", "/.sweep/patch.sh", "/.sweep/gather.sh")
#: The only piece of an agent's patch: it changes nothing.
PATCH: Final = "patch.aaa"
#: The wrapper's folder, in the command that starts an agent.
_WRAPPER: Final = re.compile(r"^bash (\S+/agent)/run ", re.MULTILINE)


class MemoryEndpoint:
    """Implements `runloop.contract.Endpoint` in memory."""

    url = "memory:"
    token = ""

    def __init__(self, scenarios: Sequence[ScenarioSummary], script: Script | None = None) -> None:
        self.script = script or Script()
        self.summaries_ = list(scenarios)
        self.runs: dict[str, ScenarioRun] = {}
        self.benchmark_runs: dict[str, BenchmarkRun] = {}
        self.devboxes: dict[str, Devbox] = {}
        self.executions: dict[str, str] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.calls: Counter[str] = Counter()
        self.most_alive = 0
        #: Whether nobody reaches it: every call fails and has no effect.
        self.is_gone = False
        self._answered_at = 0.0
        #: Who is at work on which sweep.
        self.clients: dict[str, str] = {}
        self._answers: dict[str, Any] = {}

    @property
    def answered_at(self) -> float:
        self._answered_at = self._answered_at if self.is_gone else anyio.current_time()
        return self._answered_at

    async def ping(self) -> None:
        await self._call("ping")

    @property
    def alive(self) -> int:
        """Devboxes that are not gone."""
        return sum(devbox.status in {"provisioning", "running"} for devbox in self.devboxes.values())

    async def features(self) -> frozenset[str]:
        return frozenset()

    async def at_work(self, sweep: str, client: str) -> list[str]:
        await self._call("at_work")
        self.clients[client] = sweep
        return [name for name, its in self.clients.items() if its == sweep and name != client]

    async def leave(self, client: str) -> None:
        self.clients.pop(client, None)

    async def notices(self) -> Sequence[str]:
        return ()

    async def secret_names(self) -> frozenset[str]:
        return frozenset()

    async def check(self, needs: Needs) -> None:
        """All can be had."""

    async def benchmarks(self) -> list[Benchmark]:
        return [Benchmark(id="bmd_1", name="memory", scenario_ids=tuple(each.id for each in self.summaries_))]

    async def summaries(
        self,
        benchmark: Benchmark,
        at_most: int | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> list[ScenarioSummary]:
        del benchmark, include, exclude
        return self.summaries_[:at_most]

    async def scenario(self, scenario_id: str) -> Scenario:
        await self._call("scenario")
        digest = self.script.digests.get(scenario_id, "")
        return Scenario(
            id=scenario_id, name=scenario_id, prompt=f"Solve {scenario_id}.", digest=digest, reference_output="true"
        )

    async def start_benchmark_run(
        self, benchmark_id: str, *, name: str, metadata: Mapping[str, str], key: str
    ) -> BenchmarkRun:
        await self._call("start_benchmark_run")
        run = BenchmarkRun(
            id=f"bmr_{len(self.benchmark_runs) + 1}",
            benchmark_id=benchmark_id,
            state="running",
            name=name,
            metadata=metadata,
        )
        run = self._answers.setdefault(self._known(key), run)
        return self.benchmark_runs.setdefault(run.id, run)

    async def benchmark_run(self, run_id: str) -> BenchmarkRun:
        await self._call("benchmark_run")
        return _found(self.benchmark_runs, run_id)

    async def list_benchmark_runs(
        self, *, benchmark: str | None = None, state: str | None = None
    ) -> list[BenchmarkRun]:
        await self._call("list_benchmark_runs")
        return [
            run
            for run in self.benchmark_runs.values()
            if benchmark in {None, run.benchmark_id} and state in {None, run.state}
        ]

    async def complete_benchmark_run(self, run_id: str) -> None:
        await self._call("complete_benchmark_run")
        self.benchmark_runs[run_id] = replace(_found(self.benchmark_runs, run_id), state="completed")

    async def cancel_benchmark_run(self, run_id: str) -> None:
        await self._call("cancel_benchmark_run")
        self.benchmark_runs[run_id] = replace(self.benchmark_runs[run_id], state="canceled")
        for run in list(self.runs.values()):
            if run.benchmark_run_id == run_id and run.state in RUN_ALIVE:
                self._end(run.id, "canceled")

    async def start_run(
        self,
        scenario_id: str,
        *,
        benchmark_run_id: str | None,
        name: str,
        metadata: Mapping[str, str],
        keep_alive: int,
        needs: Needs,
        key: str,
    ) -> ScenarioRun:
        del name, keep_alive, needs
        await self._call("start_run")
        if benchmark_run_id is not None:
            _found(self.benchmark_runs, benchmark_run_id)
        if self._known(key) in self._answers:
            return self.runs[self._answers[key]]
        number = len(self.runs) + 1
        self.devboxes[f"dbx_{number}"] = Devbox(id=f"dbx_{number}", status="provisioning", metadata=metadata)
        run = ScenarioRun(
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

    async def run(self, run_id: str) -> ScenarioRun:
        await self._call("run")
        return _found(self.runs, run_id)

    async def list_runs(
        self, *, benchmark_run: str | None = None, scenario: str | None = None, state: str | None = None
    ) -> list[ScenarioRun]:
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
        self, run_id: str, *, scoring: str, devbox: str | None = None, execution: str | None = None
    ) -> Settlement | None:
        del run_id, scoring, devbox, execution
        await self._call("agent_ended")
        return None

    async def score(self, run_id: str, *, key: str) -> ScenarioRun:
        del key
        await self._call("score")
        run = self.runs[run_id]
        if run.state not in {"running", "failed"} or self.devboxes[run.devbox_id].status != "running":
            raise Conflicted(f"run {run_id} is {run.state}: it cannot be scored")
        self.runs[run_id] = replace(run, state="scoring")
        return self.runs[run_id]

    async def wait_scored(self, run_id: str) -> ScenarioRun:
        await self._call("wait_scored")
        await anyio.sleep(self.script.scoring)
        if self.script.unheard_scorings > 0:
            self.script.unheard_scorings -= 1
            self.runs[run_id] = replace(self.runs[run_id], state="failed")
            return self.runs[run_id]
        is_broken = self.script.broken_scorings > 0
        self.script.broken_scorings -= is_broken
        scorer = ScorerResult(
            name="tests", score=0.0 if is_broken else self.script.score, state="error" if is_broken else "complete"
        )
        state = "failed" if is_broken else "scored"
        self.runs[run_id] = replace(
            self.runs[run_id],
            state=state,
            score=scorer.score,
            scorers=(scorer,),
            judgement=Judgement(mode="shared"),
        )
        return self.runs[run_id]

    async def complete(self, run_id: str) -> None:
        await self._call("complete")
        self._end(run_id, "completed")

    async def cancel(self, run_id: str) -> None:
        await self._call("cancel")
        self._end(run_id, "canceled")

    async def wait_running(self, devbox_id: str) -> Devbox:
        await self._call("wait_running")
        await anyio.sleep(self.script.boot)
        if self.script.failing_boots > 0:
            self.script.failing_boots -= 1
            self._set(devbox_id, "failure")
            raise DevboxFailed(f"devbox {devbox_id} never ran")
        self._set(devbox_id, "running")
        return self.devboxes[devbox_id]

    async def devbox(self, devbox_id: str) -> Devbox:
        await self._call("devbox")
        return _found(self.devboxes, devbox_id)

    async def list_devboxes(self) -> list[Devbox]:
        await self._call("list_devboxes")
        return [devbox for devbox in self.devboxes.values() if devbox.status in DEVBOX_ALIVE]

    async def shutdown(self, devbox_id: str) -> None:
        await self._call("shutdown")
        self._set(devbox_id, "shutdown")

    async def execute(self, devbox_id: str, command: str, *, key: str) -> Execution:
        if command.endswith(HOUSEKEEPING):
            self._check(devbox_id)
            return Execution(id=command, devbox_id=devbox_id, is_completed=False)
        await self._call("execute")
        self._check(devbox_id)
        identity = self._answers.setdefault(self._known(key), f"exec_{len(self.executions) + 1}")
        self.executions.setdefault(identity, command)
        return Execution(id=identity, devbox_id=devbox_id, is_completed=False)

    async def wait_completed(self, devbox_id: str, execution_id: str) -> Execution:
        if execution_id.endswith(HOUSEKEEPING):
            told = f"piece {PATCH}\n" if execution_id.endswith("/patch.sh") else ""
            return Execution(id=execution_id, devbox_id=devbox_id, is_completed=True, exit_status=0, stdout=told)
        await self._call("wait_completed")
        trial = self.devboxes[devbox_id].metadata.get("trial", "")
        slow = [seconds for arm, seconds in self.script.solve_for.items() if f"/{arm}/" in trial]
        solve = slow[0] if slow else self.script.solve
        if self.script.dying_devboxes > 0:
            self.script.dying_devboxes -= 1
            await anyio.sleep(solve / 2)
            self._set(devbox_id, "failure")
        else:
            await anyio.sleep(solve)
        self._check(devbox_id)
        wrapper = _WRAPPER.search(self.executions[execution_id])
        if wrapper and self.script.unrecorded > 0:
            self.script.unrecorded -= 1
        elif wrapper:
            self.files[devbox_id, f"{wrapper[1]}/status"] = f"{self.script.exit_status}\n".encode()
        return Execution(id=execution_id, devbox_id=devbox_id, is_completed=True, exit_status=self.script.exit_status)

    async def output(self, devbox_id: str, execution_id: str, offset: int = 0) -> AsyncGenerator[tuple[str, int], None]:
        del devbox_id, execution_id
        await self._call("output")
        yield self.script.output[offset:], len(self.script.output)

    async def kill(self, devbox_id: str, execution_id: str) -> None:
        del devbox_id, execution_id
        await self._call("kill")

    async def read_file(self, devbox_id: str, path: str) -> AsyncGenerator[bytes, None]:
        if path.endswith(f"/{PATCH}"):
            yield b""
            return
        await self._call("read_file")
        self._check(devbox_id)
        try:
            yield self.files[devbox_id, path]
        except KeyError:
            raise Missing(f"{path}: no such file in {devbox_id}") from None

    async def write_file(self, devbox_id: str, path: str, data: bytes) -> None:
        if not path.endswith(HOUSEKEEPING):
            await self._call("write_file")
        self._check(devbox_id)
        self.files[devbox_id, path] = data

    async def devbox_log(self, devbox_id: str) -> str:
        await self._call("devbox_log")
        return f"log of {devbox_id}\n"

    def _known(self, key: str) -> str:
        """The idempotency key as this endpoint keeps it: one that forgets keys takes each call for a new one."""
        return f"{key} {sum(self.calls.values())}" if self.script.is_forgetful else key

    async def _call(self, name: str) -> None:
        if self.is_gone:
            raise Unavailable("nobody answers")
        self.calls[name] += 1
        await anyio.sleep(self.script.slow.get(name, 0.01))
        faults = self.script.faults.get(name)
        if faults:
            raise faults.pop(0)

    def _check(self, devbox_id: str) -> None:
        if self.devboxes[devbox_id].status != "running":
            raise DevboxLost(f"devbox {devbox_id} is {self.devboxes[devbox_id].status}")

    def _set(self, devbox_id: str, status: str) -> None:
        self.devboxes[devbox_id] = replace(self.devboxes[devbox_id], status=status)

    def _end(self, run_id: str, state: str) -> None:
        run = self.runs[run_id]
        self.runs[run_id] = replace(run, state=state)
        self._set(run.devbox_id, "shutdown")


def _found(things: Mapping[str, T], identity: str) -> T:
    if identity not in things:
        raise Missing(f"there is no {identity}")
    return things[identity]
