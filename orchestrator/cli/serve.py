"""`sweep serve`: the benchmark service."""

from pathlib import Path
from typing import Annotated

import anyio
import typer

from orchestrator.cli.options import IsolationOption

STATE = Path.home() / ".local" / "state" / "sweep" / "service"


def serve(
    *,
    host: Annotated[
        str, typer.Option(help="The address to listen on; beyond loopback it needs --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 is any free one.")] = 8700,
    token: Annotated[
        str | None,
        typer.Option(envvar="SWEEP_TOKEN", help="The key clients must send as RUNLOOP_API_KEY. [a random one]"),
    ] = None,
    state: Annotated[Path, typer.Option(metavar="DIR", help="Where runs, scores and devboxes are kept.")] = STATE,
    benchmarks: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="A benchmark folder, or a folder of them, beside the bundled; may be repeated."
        ),
    ] = None,
    isolation: IsolationOption = "local",
    linger: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="End when no client has asked anything for so long. [never]")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log warnings only; print no address.")] = False,
) -> None:
    """Serve benchmarks, scenarios, runs and devboxes to any Runloop client (1.x).

    Point clients at it with RUNLOOP_BASE_URL and RUNLOOP_API_KEY, both printed at the start.
    """
    from orchestrator.app import serving

    anyio.run(
        lambda: serving.run(
            host=host,
            port=port,
            token=token,
            state=state,
            benchmarks=benchmarks or [],
            isolation=isolation,
            linger=linger,
            is_quiet=quiet,
        )
    )
