"""`sweep serve`: the benchmark service."""

from pathlib import Path
from typing import Annotated

import anyio
import typer

from orchestrator.cli.options import IsolationOption, LockOption

STATE = Path.home() / ".local" / "state" / "sweep" / "service"


def serve(
    *,
    host: Annotated[
        str, typer.Option(help="The address to listen on; beyond loopback it needs --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 is any free one.")] = 8700,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SWEEP_TOKEN",
            help="The key clients must send as RUNLOOP_API_KEY, of 16 characters at least. [a random one]",
        ),
    ] = None,
    state: Annotated[Path, typer.Option(metavar="DIR", help="Where runs, scores and devboxes are kept.")] = STATE,
    benchmarks: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="A benchmark folder, or a folder of them, beside the bundled; may be repeated."
        ),
    ] = None,
    isolation: IsolationOption = "local",
    lock: LockOption = "file",
    linger: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="End when no client has asked anything for so long. [never]")
    ] = None,
    foreign: Annotated[
        bool,
        typer.Option(
            "--foreign",
            help="Behave like an endpoint that is not sweep's: nothing beyond the published protocol, no memory of "
            "requests, no second scoring.",
        ),
    ] = False,
    chaos: Annotated[
        Path | None,
        typer.Option("--chaos", metavar="FILE", help="Misbehave as this file says, to rehearse a night: see above."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret",
            metavar="NAME",
            help="A variable of this environment that clients may give to their devboxes, and are told of, by name; "
            "no other can be had. Repeat it.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="A name that clients reach this service by, if it is neither its address nor this machine's, such as "
            "a proxy's. Repeat it.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log warnings only; print no address.")] = False,
) -> None:
    """Serve benchmarks, scenarios, runs and devboxes to any Runloop client (1.x).

    Point clients at it with RUNLOOP_BASE_URL and RUNLOOP_API_KEY, both printed at the start.

    A --chaos file has a seed and rules. The same seed and the same course of things give the same faults.

    \b
      seed = 7
      [[ rules ]]
      fault = "429"
      route = "POST /v1/scenarios/*"   # of all requests, these
      probability = 0.2                # of these, every fifth
      retry_after = 1.5
      [[ rules ]]
      fault = "dies-solving"
      times = 2                        # at most
      seconds = 1                      # after the start of a command

    To requests happen 429 500 502 503 504 (retry_after), hang late (seconds),
    drop drop-mid-body vanish list-repeats list-skips.

    To devboxes happen slow-boot dies-solving dies-scoring (seconds), boot-fails,
    scorer-error (scorings: so many of each devbox it strikes).

    Even an empty file lets a request ask: x-sweep-chaos: drop, or late=2.5.
    Spared are /v1/sweep and the shutdown of devboxes.
    """  # noqa: D301 - a backspace keeps the lines of a paragraph apart
    from orchestrator.commands import serve
    from orchestrator.common.awake import AwakeLoop
    from orchestrator.view.console import write_by_threads

    write_by_threads()
    anyio.run(
        lambda: serve.run(
            host=host,
            port=port,
            token=token,
            state=state,
            benchmarks=benchmarks or [],
            isolation=isolation,
            linger=linger,
            is_foreign=foreign,
            chaos=chaos,
            secret_names=secret or [],
            allowed_hosts=allow_host or [],
            lock=lock,
            is_quiet=quiet,
        ),
        backend_options={"loop_factory": AwakeLoop},
    )
