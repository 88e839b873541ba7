"""`sweep attach`: a sweep that runs elsewhere on this machine."""

import anyio
import typer

from orchestrator.cli.options import RUNS, JsonOption, RunsOption, SweepArgument, style


def attach(name: SweepArgument = None, *, runs: RunsOption = RUNS, json: JsonOption = False) -> None:
    """Follow a running sweep of this machine: by default the one that runs.

    Ctrl-C leaves it running. When it ends, its summary is printed and its exit code is this command's. Of a sweep that
    does not run the summary is printed at once.
    """
    from orchestrator.commands import attach
    from orchestrator.rundir.sweep_index import find, find_running
    from orchestrator.view.console import write_by_threads

    folder = find(runs, name) if name else find_running(runs)
    write_by_threads(as_json=json)
    raise typer.Exit(anyio.run(lambda: attach.run(folder, style=style(as_json=json))))
