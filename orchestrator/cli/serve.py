"""`sweep serve` and `sweep workspace`: the service, and the command that agents on this machine call."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from orchestrator.cli import options
from orchestrator.core.config import DevboxConfig, EndpointConfig, RegistryConfig

STATE: Final = Path("~/.local/state/sweep/service")


@options.takes_settings("isolation", "disk_limit", "lock", "registry_mirror", "image_cache", "rebuild")
def serve(
    context: typer.Context,
    *,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen on. One beyond loopback needs --token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="The port to listen on. 0 is any free one.")
    ] = 8700,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="SWEEP_TOKEN",
            help="The key that clients send as RUNLOOP_API_KEY: at least 16 characters. \\[default: a random one]",
        ),
    ] = None,
    state: Annotated[Path, typer.Option(metavar="DIR", help="The folder for runs, scores and devboxes.")] = STATE,
    benchmarks: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="A benchmark folder, or a folder of them, beside the bundled ones. Repeat it for more."
        ),
    ] = None,
    linger: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="End once no client has asked for this long. \\[default: never]"),
    ] = None,
    foreign: Annotated[
        bool,
        typer.Option(
            "--foreign",
            help="Behave like an endpoint of others: only the published protocol, no memory of requests, no second "
            "scoring.",
        ),
    ] = False,
    chaos: Annotated[
        Path | None,
        typer.Option("--chaos", metavar="FILE", help="Inject the faults of this file, to rehearse a night: see above."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret",
            metavar="NAME",
            help="A variable of this environment that clients may list by name and give to their devboxes. Others "
            "stay hidden. Repeat it for more.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="A name that clients reach this service by, such as a proxy's. Its address and this machine's names "
            "are allowed already. Repeat it for more.",
        ),
    ] = None,
    network: Annotated[
        Literal["auto", "host"],
        typer.Option(
            help="What a policy that allows all opens to devboxes: the internet (auto), or this machine's own network, "
            "with its loopback and its neighbours (host)."
        ),
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Log warnings only; print no address.")] = False,
    **settings: Any,
) -> None:
    """Serve benchmarks, scenarios, runs and devboxes to any Runloop client (1.x).

    Clients find it by RUNLOOP_BASE_URL and RUNLOOP_API_KEY. Both are printed at the start.

    A --chaos file has a seed and rules. The same seed and the same course of events give the same faults.

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

    To requests happen 429 500 502 503 504 (retry_after), hang late (seconds), drop drop-mid-body vanish list-repeats
    list-skips.

    To devboxes happen slow-boot dies-solving dies-scoring (seconds), boot-fails, scorer-error (scorings: so many of
    each devbox fail).

    Even with an empty file, a request can ask for a fault: x-sweep-chaos: drop, or late=2.5. /v1/sweep and the shutdown
    of devboxes never fail.
    """  # noqa: D301 - a backspace keeps the lines of a paragraph apart
    from orchestrator.commands import serve

    images = options.settings_of(context, settings, RegistryConfig)
    place = options.settings_of(context, settings, EndpointConfig)
    serve.be_root(state, place.isolation)
    options.end_with(
        lambda: serve.run(
            host=host,
            port=port,
            token=token,
            state=state,
            benchmarks=benchmarks or [],
            isolation=place.isolation,
            disk_limit=options.settings_of(context, settings, DevboxConfig).disk_limit,
            lock=place.lock,
            lends_network=network == "host",
            linger=linger,
            is_foreign=foreign,
            chaos=chaos,
            secret_names=secret or [],
            allowed_hosts=allow_host or [],
            images=images,
            is_quiet=quiet,
        )
    )


def workspace(context: typer.Context) -> None:
    """For agents on this machine: exec, read, write, upload and download in their devbox."""
    from orchestrator.agentkit.host.workspace_cli import main  # `__main__` calls it without loading this command line

    main(context.args)
