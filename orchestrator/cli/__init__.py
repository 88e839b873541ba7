"""The `sweep` command: words in, exit codes out. Decisions are made elsewhere."""

import errno
import os
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from orchestrator import __version__
from orchestrator.cli import catalog, images, notify, orders, pages, run, serve, sweeps
from orchestrator.cli.options import Group, add

if TYPE_CHECKING:
    from io import TextIOWrapper

app = typer.Typer(
    name="sweep",
    cls=Group,
    help="Run coding agents over whole benchmarks, overnight: every scenario scored, once, by morning.",
    epilog="Exit codes: 0 every trial has a score, or as many as --accept asks for; 1 some failed, or the sweep "
    "stopped; 2 misuse; 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
of_runs = (
    *(sweeps.show, sweeps.failures, sweeps.status, sweeps.compare, sweeps.attach),
    *(sweeps.logs, sweeps.export, sweeps.stop, sweeps.reap, sweeps.repair),
)
for each in (
    run.run,
    run.resume,
    run.rescore,
    images.prepare,
    *of_runs,
    pages.view,
    pages.report,
    notify.notify,
    catalog.check,
    catalog.doctor,
    serve.serve,
    catalog.docs,
):
    add(app, each)
add(app, sweeps.list_sweeps, "list")
add(app, orders.set_, "set")
for order in (orders.pause, orders.unpause, orders.cancel, orders.requeue):
    add(app, order)
#: Its words are its own affair.
EVERYTHING: Final = {"allow_extra_args": True, "ignore_unknown_options": True}
add(app, serve.workspace, add_help_option=False, context_settings=EVERYTHING)
agents = typer.Typer(cls=Group, help="List, explain and create agents.", no_args_is_help=True)
add(agents, catalog.list_agents, "list")
add(agents, catalog.show_agent, "show")
add(agents, catalog.new_agent, "new")
benchmarks = typer.Typer(cls=Group, help="List, write, import, find and fetch benchmarks.", no_args_is_help=True)
add(benchmarks, catalog.list_benchmarks, "list")
add(benchmarks, catalog.show_benchmark, "show")
add(benchmarks, catalog.new_benchmark, "new")
add(benchmarks, catalog.import_benchmark, "import")
add(benchmarks, catalog.search_benchmarks, "search")
add(benchmarks, catalog.get_benchmarks, "get")
add(benchmarks, catalog.update_registries, "update")
add(benchmarks, catalog.remove_benchmarks, "rm")
scenario = typer.Typer(cls=Group, help="Run one scenario at a time.", no_args_is_help=True)
add(scenario, run.run_scenario, "run")
of_images = typer.Typer(cls=Group, help="Get, list and remove container images.", no_args_is_help=True)
add(of_images, images.list_images, "list")
add(of_images, images.pull, "pull")
add(of_images, images.load, "load")
add(of_images, images.build, "build")
add(of_images, images.remove, "rm")
add(of_images, images.prune, "prune")
app.add_typer(agents, name="agents")
app.add_typer(benchmarks, name="benchmarks")
app.add_typer(of_images, name="images")
app.add_typer(scenario, name="scenario")


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
    """Run the command line; a failure of ours is a line on standard error and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        cast("TextIOWrapper", stream).reconfigure(errors="backslashreplace")  # a name need not be text
    try:
        app()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except Exception as error:  # noqa: BLE001 - told apart inside; what is not ours is raised again
        code = _report(error)
    try:
        code = _finish_writing(code)
    except KeyboardInterrupt:  # do not wait for the output any longer; the work is done
        os._exit(code)
    if code == 130:
        os._exit(130)  # Python's own way out would be the signal again, if that had come while a string was executed
    sys.exit(code)


def _report(error: Exception) -> int:
    """Print the failure, with a traceback if it is a mistake of ours; returns the exit code."""
    from orchestrator.commands.exit_codes import exit_code_of
    from orchestrator.core.printable import printable_lines

    try:
        code, message = exit_code_of(error)
    except Exception:  # noqa: BLE001 - the same error again
        traceback.print_exception(error)
        return 1
    if message:
        sys.stderr.write("\n".join(printable_lines(f"sweep: {message}")) + "\n")
    return code


def _finish_writing(code: int) -> int:
    """Wait until the output is written, or cannot be; returns the exit code, which changes if output was all there was.

    Output of the writing threads does not change it: a command that did its work is not judged by its readers.
    """
    out = sys.modules.get("orchestrator.view.console")
    if out is not None:
        out.finish_writing()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        sys.stdout = sys.stderr = None  # or Python would try again, and tell
        if code == 0 and error.errno != errno.EPIPE:
            with suppress(OSError):
                os.write(2, f"sweep: standard output cannot be written: {error.strerror}\n".encode())
        return code or 1
    return code
