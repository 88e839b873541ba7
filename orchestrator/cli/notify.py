"""`sweep notify`: the words of the command that tries notifiers."""

from typing import Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.run import variables_of


def notify(
    target: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND|'$NAME'", help="As for --notify. \\[default: SWEEP_NOTIFY]")
    ] = None,
    *,
    sweep: Annotated[
        str | None,
        typer.Option("--sweep", metavar="RUN", help="Tell of this sweep, as it is now. \\[default: of none]"),
    ] = None,
    env_file: options.EnvFile = None,
    runs: options.Runs = options.RUNS,
) -> None:
    """Send a test notification to each notifier, and say which have failed and why. The exit code is 1 if one has.

    Examples:
      sweep notify 'cat >told.json'

      sweep notify --sweep my-sweep --env-file secrets.env

    """
    from orchestrator.commands import try_notifiers
    from orchestrator.rundir.sweep_index import find

    folder = None if sweep is None else find(runs, sweep)
    options.end_with(lambda: try_notifiers.run(target or (), folder, given=variables_of(env_file)))
