"""A sweep in memory, on a virtual clock."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from orchestrator.agentkit import loader
from orchestrator.commands.run_sweep import make_context
from orchestrator.core.config import resolve
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.records import Benchmark, ScenarioSummary, TrialKey
from orchestrator.engine.concurrency import Limits
from orchestrator.engine.context import Arm, Context
from orchestrator.engine.scheduler import Scheduler, queues_of
from orchestrator.engine.shutdown import Stopping
from orchestrator.engine.worker import run_all
from orchestrator.testing.clock import run_virtually
from orchestrator.testing.fakes import MemoryEndpoint, MemorySink, Script


@dataclass
class Sweep:
    """One sweep, its parts in reach; `run()` runs it to its end or stop and may be called again to resume it."""

    ctx: Context
    plan: Plan
    endpoint: MemoryEndpoint
    sink: MemorySink
    stopping: Stopping

    @property
    def ledger(self) -> Ledger:
        return self.sink.ledger

    def events(self, kind: str) -> list[Any]:
        return [event for event in self.sink.events if event.kind == kind]

    @property
    def results(self) -> list[dict[str, Any]]:
        return [dict(event.result) for event in self.events("trial.finished")]

    async def conduct(self) -> None:
        await run_all(self.ctx, self.scheduler(), self.stopping)

    def scheduler(self, left: Collection[TrialKey] = ()) -> Scheduler:
        return Scheduler(queues_of(self.ctx, self.plan.pending_by_arm(self.ledger)), self.stopping, left)

    def run(self) -> "Sweep":
        run_virtually(self.conduct)
        return self

    def run_beside(self, disturb: Callable[[], Awaitable[None]]) -> "Sweep":
        """Run it while something else happens."""

        async def both() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.conduct)
                await disturb()

        run_virtually(both)
        return self


MakeSweep = Callable[..., Sweep]


@pytest.fixture(params=[pytest.param(0.0, id="swift disk"), pytest.param(1.0, id="slow disk", marks=pytest.mark.slow)])
def make_sweep(tmp_path: Path, request: pytest.FixtureRequest) -> MakeSweep:
    """Every test of the engine holds for a disk that syncs at once, and for one that takes up to a second."""
    return partial(_make, tmp_path, partial(Random(1).uniform, 0.0, request.param))


def _make(
    folder: Path,
    sync: Callable[[], float],
    *,
    scenarios: int = 3,
    agent: str = "command:work",
    script: Script | None = None,
    endpoint: MemoryEndpoint | None = None,
    ledger: Ledger | None = None,
    agent_timeout: float | None = None,
    **settings: Any,
) -> Sweep:
    summaries = tuple(
        ScenarioSummary(id=f"scn_{n}", name=f"scenario-{n}", agent_timeout=agent_timeout) for n in range(scenarios)
    )
    config = resolve({"benchmark": "memory", "arms": [{"agent": agent}]} | settings)
    endpoint = endpoint or MemoryEndpoint(summaries, script)
    ledger = ledger or Ledger()
    sink = MemorySink(ledger, sync)
    arms = {
        arm.name: Arm(
            config=arm, agent=loader.load(arm.agent, python=None, search=(), settings=arm.settings, environ={})
        )
        for arm in config.arms
    }
    ctx = make_context(
        config,
        sweep="0190",
        folder=folder,
        benchmark=Benchmark(id="bmd_1", name="memory", scenario_ids=()),
        scenarios=summaries,
        arms=arms,
        endpoint=endpoint,
        sink=sink,
        ledger=ledger,
        limits=Limits(devboxes=config.devboxes, agents=config.agents),
    )
    ctx = replace(ctx, dice=lambda: 0.5, now=anyio.current_time)
    plan = Plan(benchmark="memory", scenarios=summaries, arms=tuple(arms), trials=config.trials)
    return Sweep(ctx=ctx, plan=plan, endpoint=endpoint, sink=sink, stopping=Stopping())
