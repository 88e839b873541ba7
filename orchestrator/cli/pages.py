"""`sweep view` and `sweep report`: sweeps for a browser."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options


def view(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="A folder of sweeps, or a sweep. \\[default: that of --runs]"),
    ] = None,
    *,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", min=0, max=65535, help="The port. 0 is any free one. \\[default: 8701, or a free one]"
        ),
    ] = None,
    runs: options.Runs = options.RUNS,
) -> None:
    """Show sweeps in a browser, live. Print the link; Ctrl-C ends it.

    The page is served on this machine's loopback address only, to whoever has the link. It reads run folders and
    changes nothing, so it can be started and stopped while sweeps run, and show folders of other machines.

    Examples:
      sweep view

      sweep view runs/my-sweep

      ssh -L 8701:localhost:8701 machine sweep view

    """
    from orchestrator.commands import view

    view.run(runs if folder is None else folder, port=port)


def report(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The sweep's name, or its folder.")],
    *,
    md: Annotated[
        bool, typer.Option("--md", help="Write Markdown, for a pull request, to standard output or to -o FILE.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write. \\[default: report.html in its folder]"),
    ] = None,
    runs: options.Runs = options.RUNS,
) -> None:
    """Write a sweep's report: one HTML file that needs nothing else. Every sweep writes it at its end, too.

    Examples:
      sweep report my-sweep

      sweep report my-sweep --md

    """
    from orchestrator.commands import write_report
    from orchestrator.rundir.sweep_index import find

    write_report.run(find(runs, name), is_markdown=md, target=output)
