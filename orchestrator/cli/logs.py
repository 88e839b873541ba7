"""`sweep logs`: what an agent prints, while it runs or later, and everything else that came home."""

from typing import Annotated

import anyio
import typer

from orchestrator.cli.options import RUNS, RunsOption


def logs(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The sweep's name, or its folder.")],
    scenario: Annotated[
        str | None, typer.Argument(help="A scenario's name or id. Without it all there is is listed.")
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the trial has ended.")] = False,
    arm: Annotated[str | None, typer.Option("--arm", help="The arm. \\[the only one]")] = None,
    trial: Annotated[int, typer.Option("--trial", metavar="N", min=1, help="The trial.")] = 1,
    attempt: Annotated[
        int | None, typer.Option("--attempt", metavar="K", min=1, help="The attempt. \\[the newest]")
    ] = None,
    file: Annotated[
        str, typer.Option("--file", metavar="FILE", help="Another file: patch.diff, devbox.log, trajectory.json …")
    ] = "agent.log",
    raw: Annotated[
        bool,
        typer.Option("--raw", help="To a terminal too as it is: let it obey what an agent printed."),
    ] = False,
    runs: RunsOption = RUNS,
) -> None:
    """Print what an agent printed, byte for byte but for secrets.

    A terminal gets its colours; what else it would obey is shown as escapes, without --raw.
    With -f as it comes, in every further attempt too, until the trial has a result or its sweep has ended.

    Examples:
      sweep logs my-sweep

      sweep logs my-sweep billing-month-end -f

      sweep logs my-sweep billing-month-end --file patch.diff | git apply

    """
    from orchestrator.commands import logs
    from orchestrator.rundir.sweep_index import find

    which = logs.Which(arm=arm, trial=trial, attempt=attempt, file=file)
    anyio.run(lambda: logs.run(find(runs, name), scenario, which, is_followed=follow, is_raw=raw))
