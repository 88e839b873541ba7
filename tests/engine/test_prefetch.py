"""The environments of the next trials are asked for while agents work, and none that a trial in flight has."""

from dataclasses import replace

import anyio

from orchestrator.engine.prefetch import AHEAD, LOOK_EVERY_S, prepare_ahead
from orchestrator.testing.clock import run_virtually
from orchestrator.testing.fakes import Script

from .conftest import MakeSweep, Sweep


def prefetching(sweep: Sweep) -> Sweep:
    """Give each scenario an environment of its own, and run the sweep beside its prefetch."""
    for scenario in list(sweep.ctx.scenarios.values()):
        sweep.ctx.scenarios[scenario.id] = replace(scenario, environment=f"env-{scenario.id}")  # type: ignore[index]

    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(prepare_ahead, sweep.ctx, lambda: sweep.plan.pending(sweep.ledger))
            await sweep.conduct()
            tasks.cancel_scope.cancel()

    run_virtually(both)
    return sweep


def test_the_next_environments_are_asked_for_in_order_while_agents_work(make_sweep: MakeSweep) -> None:
    sweep = prefetching(make_sweep(scenarios=6, devboxes=1, script=Script(solve=10 * LOOK_EVERY_S)))
    expected = [f"env-{scenario.id}" for scenario in sweep.plan.scenarios]
    assert list(dict.fromkeys(sweep.endpoint.prepared)) == expected[1:]
    assert sweep.endpoint.prepared[:AHEAD] == expected[1 : 1 + AHEAD]


def test_nothing_is_asked_for_while_a_devbox_waits_for_its_own_image(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(scenarios=3, devboxes=1, script=Script(preparing=600, solve=1.0, boot=0.1))
    prefetching(sweep)
    assert sweep.endpoint.calls["prepare"] <= 3
