"""`sweep stop`: an end for a sweep that runs elsewhere on this machine."""

from typing import Annotated

import anyio
import typer

from orchestrator.cli.options import RUNS, RunsOption, SweepArgument


def stop(
    name: SweepArgument = None,
    *,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for those in flight: end the agents, release the devboxes.")
    ] = False,
    runs: RunsOption = RUNS,
) -> None:
    """Stop a running sweep of this machine: by default the one that runs. Returns when it has ended.

    It starts no new trials; those in flight finish, for as long as the sweep's --drain says (5 minutes without it).
    What is owed then is owed still: `sweep resume` goes on with it.
    """
    from orchestrator.commands import stop
    from orchestrator.rundir.sweep_index import find, find_running
    from orchestrator.view.console import write_by_threads

    folder = find(runs, name) if name else find_running(runs)
    write_by_threads()
    raise typer.Exit(anyio.run(lambda: stop.run(folder, is_now=now)))
