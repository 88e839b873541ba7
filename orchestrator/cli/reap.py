"""`sweep reap`: what sweeps left on an endpoint."""

from typing import Annotated

import anyio
import typer

from orchestrator.cli.options import RUNS, EndpointOption, JsonOption, RunsOption


def reap(
    *,
    endpoint: EndpointOption = None,
    sweep: Annotated[
        str | None, typer.Option("--sweep", metavar="ID", help="Only what belongs to this sweep: its id, or its name.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Release without asking.")] = False,
    runs: RunsOption = RUNS,
    json: JsonOption = False,
) -> None:
    """List what sweeps have on an endpoint - runs, devboxes, benchmark runs - and release what nobody uses.

    Released is what belongs to a sweep whose folder is in --runs with nobody at work in it: on a terminal after a
    question, elsewhere with --yes only. Mind that an unfinished sweep may want what it has: an agent may be working
    in its devbox, and `sweep resume` would wait for it. What is released, a resume runs again; a result that is there
    already is kept.

    What belongs to a sweep whose folder is not here may be in use by another machine: it is listed, and released with
    --sweep ID --yes only. What is of no sweep is never touched. Without --endpoint the embedded service of --runs is
    looked at, if it runs.
    """
    from orchestrator.commands import reap

    raise typer.Exit(anyio.run(lambda: reap.run(endpoint, runs=runs, sweep=sweep, is_sure=yes, as_json=json)))
