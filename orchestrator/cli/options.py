"""Options that several commands share, and small helpers for all of them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from orchestrator.view.progress import Style

EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        envvar="RUNLOOP_BASE_URL",
        help="A Runloop-compatible service; its key is read from RUNLOOP_API_KEY. Without it, an embedded one is used.",
    ),
]
RunsOption = Annotated[
    Path, typer.Option("--runs", metavar="DIR", envvar="SWEEP_RUNS", help="Where sweeps are kept.", show_default=True)
]
IsolationOption = Annotated[
    str,
    typer.Option(
        "--isolation",
        metavar="local|none",
        help="Where the embedded service's devboxes come from: sandboxes, or plain processes without any isolation.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON lines on standard output, for programs.")]

RUNS: Final = Path("runs")


def style(*, as_json: bool) -> "Style":
    """How to draw: JSON if asked, a screen on a terminal, lines otherwise."""
    if as_json:
        return "json"
    return "terminal" if sys.stdout.isatty() else "plain"
