"""`sweep set`, `pause`, `unpause`, `cancel` and `requeue`: orders to a sweep that runs on this machine."""

from typing import Annotated, Any

import typer

from orchestrator.cli import options
from orchestrator.core.errors import UsageError

Run = Annotated[str, typer.Argument(metavar="RUN", help="The sweep's name, or its folder.")]
Scenario = Annotated[str, typer.Argument(metavar="SCENARIO", help="A scenario's name or id.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept in the journal, and shown.")]
Arm = Annotated[str | None, typer.Option("--arm", metavar="ARM", help="Only this arm. \\[default: all]")]
Trial = Annotated[int | None, typer.Option("--trial", metavar="N", help="Only this trial. \\[default: all]")]


def set_(
    name: Run,
    settings: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…", help="Settings, as their options take them.")],
    *,
    reason: Reason = "",
    runs: options.Runs = options.RUNS,
) -> None:
    """Change settings of a running sweep at once. A resume keeps them.

    These can be set: devboxes, rate, agents, deadline, max-cost, max-devbox-hours and max-failures; `none` takes one of
    the last five away. A deadline with a plus sign is later than the one there is.

    Examples:
      sweep set my-sweep devboxes=4 agents=2

      sweep set my-sweep deadline=+2h max-cost=50 --reason "the boss pays"

    """
    from orchestrator.core.orders import Set

    pairs = [each.partition("=") for each in settings]
    if wrong := next((key for key, equals, value in pairs if not (key and equals and value)), None):
        raise UsageError(f"{wrong!r} sets nothing: write KEY=VALUE, for example devboxes=4.")
    _give(name, runs, Set(settings={key: value for key, _, value in pairs}, reason=reason))


def pause(name: Run, *, reason: Reason = "", runs: options.Runs = options.RUNS) -> None:
    """Start no new trials of a running sweep until `sweep unpause`. Trials in flight go on."""
    from orchestrator.core.orders import Pause

    _give(name, runs, Pause(reason=reason))


def unpause(name: Run, *, reason: Reason = "", runs: options.Runs = options.RUNS) -> None:
    """Start trials of a paused sweep again."""
    from orchestrator.core.orders import Unpause

    _give(name, runs, Unpause(reason=reason))


def cancel(
    name: Run,
    scenario: Scenario,
    *,
    arm: Arm = None,
    trial: Trial = None,
    reason: Reason = "",
    runs: options.Runs = options.RUNS,
) -> None:
    """Give up a scenario's trials in a running sweep: those in flight end, and those that wait never begin.

    Each becomes a failed trial of the class Canceled. Results that are there already stay.
    """
    from orchestrator.core.orders import Cancel

    _give(name, runs, Cancel(scenario=scenario, arm=arm, trial=trial, reason=reason))


def requeue(
    name: Run,
    scenario: Scenario,
    *,
    arm: Arm = None,
    trial: Trial = None,
    reason: Reason = "",
    runs: options.Runs = options.RUNS,
) -> None:
    """Run a scenario's trials again in a running sweep: those in flight are ended first.

    The result of a finished one counts no more; the journal keeps it. Attempts that are ended so are not counted.
    """
    from orchestrator.core.orders import Requeue

    _give(name, runs, Requeue(scenario=scenario, arm=arm, trial=trial, reason=reason))


def _give(name: str, runs: Any, order: Any) -> None:
    from orchestrator.commands import order as orders
    from orchestrator.rundir.sweep_index import find

    orders.run(find(runs, name), order)
