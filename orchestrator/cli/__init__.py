"""The `sweep` command: words in, exit codes out. One file per command group; decisions are made elsewhere."""

import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from orchestrator import __version__
from orchestrator.cli import (
    agents,
    attach,
    benchmarks,
    check,
    logs,
    reap,
    repair,
    resume,
    run,
    scenario,
    serve,
    stop,
    workspace,
)

app = typer.Typer(
    name="sweep",
    help="Run coding agents over whole benchmarks, overnight: every scenario scored, once, by morning.",
    epilog="Exit codes: 0 every trial has a score, 1 some failed or the sweep stopped, 2 misuse, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
)
app.command("run")(run.run)
app.command("resume")(resume.resume)
app.command("attach")(attach.attach)
app.command("logs")(logs.logs)
app.command("stop")(stop.stop)
app.command("reap")(reap.reap)
app.command("check")(check.check)
app.command("serve")(serve.serve)
app.command("repair")(repair.repair)
app.command("workspace", add_help_option=False, context_settings=workspace.EVERYTHING)(workspace.workspace)
app.add_typer(agents.app, name="agents")
app.add_typer(benchmarks.app, name="benchmarks")
app.add_typer(scenario.app, name="scenario")


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's way
    if wanted:
        typer.echo(f"sweep {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
    del version


def main() -> None:
    """Run the command line; a failure of ours is one line on standard error and an exit code."""
    try:
        app()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(130)  # Python's own way out would be the signal again, if that had come while a string was executed
    except Exception as error:  # noqa: BLE001 - told apart inside; what is not ours is raised again
        from orchestrator.app.exits import exit_code_of

        code, message = exit_code_of(error)
        if message:
            sys.stderr.write(f"sweep: {message}\n")
        sys.exit(code)
